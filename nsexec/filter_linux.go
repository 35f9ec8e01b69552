package nsexec

func (c *compiler) compileSeccomp() {}
func (c *compiler) installSeccomp() {}
