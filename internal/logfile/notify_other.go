//go:build !linux

package logfile

import "os"

func notify(*os.File, *subscription) (stop func()) { return nil }
