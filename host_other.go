//go:build !linux

package coracle

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"
)

func signalNumber(string) syscall.Signal { return 0 }

func bootID() string { return "" }

func processIdentity(int) (string, uint64) { return "", 0 }

type hostProcess struct{}

func processLives(int, string, uint64) bool { return false }

func makeFIFO(string) error { return errors.ErrUnsupported }

func openProcess(int, string, uint64) (*hostProcess, error) { return nil, errors.ErrUnsupported }

func (*hostProcess) close() {}

func (*hostProcess) openRoot(int) (*os.File, error) { return nil, errors.ErrUnsupported }

func (*hostProcess) openDir(int) (*os.File, error) { return nil, errors.ErrUnsupported }

func (*hostProcess) ended(time.Duration) bool { return false }

func (*hostProcess) file() *os.File { return nil }

func (*hostProcess) signal(syscall.Signal) error { return errors.ErrUnsupported }

func (*hostProcess) wait(context.Context) error { return errors.ErrUnsupported }

func deviceNode(string) (string, int64, int64, os.FileMode, uint32, uint32, error) {
	return "", 0, 0, 0, 0, 0, errors.ErrUnsupported
}

func setNoDev(*os.File) error                   { return errors.ErrUnsupported }
func openIn(*os.File, string) (*os.File, error) { return nil, errors.ErrUnsupported }
