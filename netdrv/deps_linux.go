package netdrv

// The firewall's files replace this one: until they are here it keeps go.mod tidy.
import _ "github.com/google/nftables"
