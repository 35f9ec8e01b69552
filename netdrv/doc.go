// Package netdrv connects containers to networks. It makes bridges, virtual Ethernet pairs, firewall tables and name servers
// by netlink; no program is run for it.
//
//	driver, err := netdrv.Open("bridge", netdrv.Config{Root: root, Run: run})
//	err = driver.Up(ctx, network)                       // the bridge, its addresses, its tables: where they are missing
//	ns, err := netdrv.NewNamespace()                    // a network namespace in which nothing runs yet
//	err = driver.Connect(ctx, network, endpoint, ns)    // eth0, its addresses and routes
//	...                                                 // start the container in it
//	err = driver.Forget(ctx, network, []*netdrv.Endpoint{endpoint})
//
// # Who knows what
//
// A driver keeps nothing. [Network] and [Endpoint] are plain data that the caller chooses, stores and passes in again: names,
// addresses and what belongs to whom are the caller's business. What is on the host is found by its name, which is made
// of the ids, so any process can continue where another was killed.
//
// # Namespaces
//
// A [Namespace] is a descriptor, in no mount table: the namespace lives as long as a process is in it or somebody holds
// it. What has to happen inside happens on a thread that ends with it ([Namespace.Do]); no thread of the program is ever
// returned to the Go runtime in another namespace.
//
// # On the host
//
// Interfaces have names that begin with cor- (bridges) or corv (the host's ends of containers' interfaces). The alias of a
// bridge says whose it is: coracle:<network id>:<root>. Removing a container removes no interface: the kernel does, some
// 40 ms after the namespace has ended.
//
// # Drivers
//
// "bridge" makes a network of the host's own, with the host as its router. "macvlan" and "ipvlan" put containers into
// the network that an interface of the host is in. Others implement [Driver] and are registered by [Register]; package netdrvtest
// has the tests that they must pass.
package netdrv
