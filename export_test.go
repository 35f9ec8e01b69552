package coracle

// GroupPrefix is how the names of an engine's cgroups begin.
func (e *Engine) GroupPrefix() string { return e.groupPrefix() }
