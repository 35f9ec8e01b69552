package netdrv

func builtinDriver(name string) OpenDriver { return nil }
