package testtool

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

// networkCommand performs a command of the tool that has to do with networks:
//
//	dial NETWORK ADDRESS   sends "hello", and prints what comes back and the address it came from
//	lookup NAME            prints the addresses of the name, sorted
//	lookup-addr ADDRESS    prints the names of the address
//	interfaces             prints a line for each interface but loopback
//	lookup-at SERVER NAME  asks a server, ADDRESS:PORT, for the IPv4 addresses of the name
//
// And some that do harm, see nethostile_linux.go.
func networkCommand(args []string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	resolver := &net.Resolver{PreferGo: true}
	switch args[0] {
	case "dial":
		conn, err := (&net.Dialer{Resolver: resolver}).DialContext(ctx, args[1], args[2])
		if err != nil {
			return fail(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.WriteString(conn, "hello"); err != nil {
			return fail(err)
		}
		b := make([]byte, 64)
		n, err := conn.Read(b)
		if err != nil {
			return fail(err)
		}
		fmt.Printf("%s from %v\n", b[:n], conn.RemoteAddr())
	case "lookup":
		list, err := resolver.LookupHost(ctx, args[1])
		if err != nil {
			return fail(err)
		}
		slices.Sort(list)
		fmt.Println(strings.Join(list, " "))
	case "lookup-addr":
		list, err := resolver.LookupAddr(ctx, args[1])
		if err != nil {
			return fail(err)
		}
		slices.Sort(list)
		fmt.Println(strings.Join(list, " "))
	case "lookup-at":
		server := args[1]
		resolver.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, server)
		}
		list, err := resolver.LookupIP(ctx, "ip4", args[2])
		if err != nil {
			return fail(err)
		}
		fmt.Println(list[0])
	case "dns", "dns-flood", "frames", "flows":
		return hostileNetworkCommand(args)
	case "interfaces":
		list, err := net.Interfaces()
		if err != nil {
			return fail(err)
		}
		for _, i := range list {
			if i.Flags&net.FlagLoopback != 0 {
				continue
			}
			addrs, _ := i.Addrs()
			fmt.Println(i.Name, i.MTU, i.HardwareAddr, addrs)
		}
	}
	return 0
}
