package coracle

type LogFull string

const (
	LogDrop  LogFull = ""
	LogBlock LogFull = "block"
)

type LogSpec struct {
	Mode     string
	MaxSize  int64
	MaxFiles int
	Full     LogFull
}

func (l *LogSpec) maxSize() int64 {
	if l.MaxSize < 0 {
		return 0
	}
	if l.MaxSize == 0 {
		return 16 << 20
	}
	return l.MaxSize
}
func (l *LogSpec) maxFiles() int {
	if l.MaxFiles == 0 {
		return 4
	}
	return l.MaxFiles
}
func (s *ContainerSpec) logged() (stdout, stderr bool) {
	if s.Log.Mode == "none" || !s.Detached && s.AutoRemove {
		return false, false
	}
	return s.Stdout == nil, s.Stderr == nil
}
