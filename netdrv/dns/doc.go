// Package dns answers the name queries of one container: what its networks know from a [Zone], and everything else from
// the resolvers of the host.
//
//	server := dns.Serve(udp, tcp, dns.Config{Zone: zone, Upstreams: resolvers.Servers})
//	defer server.Close()
//
// The sockets are made by the caller, in the container's network namespace; questions are passed on from the namespace of
// the program. A server is one container's: its limits bound what that container can make the program do, so that one that
// floods its server harms nobody but itself.
//
// # What is answered
//
//   - A and AAAA of a name that the zone knows, or of localhost (RFC 6761), with every address, in an order that moves on by
//     one with each answer. Of any other type the name has no records: NOERROR and no answer, never a question to others.
//     ANY gives both. Names are compared without case. Answers are authoritative and live for zero seconds, as a container
//     may end at any time.
//   - PTR of an address that the zone knows. One that it does not know but Config.Private says is ours does not exist:
//     NXDOMAIN.
//   - Everything else is passed on to the upstreams, or does not exist (NXDOMAIN) if there are none. Without upstreams
//     nothing that a container asks leaves the process, not even as a question (CVE-2024-29018).
//
// Queries that are no such thing are answered too: FORMERR if a query can not be read or has not exactly one question,
// NOTIMP if its operation is not QUERY, REFUSED for a class other than IN and for zone transfers, BADVERS for a later version
// of EDNS. No query is longer than 4096 bytes. What is shorter than a header, or is a response, gets no answer: two servers can not be made to talk to each other.
//
// # Passing on
//
// A query goes to the upstreams one after the other, each for Limits.Timeout, from a new socket with a port and an id
// that nobody can guess. An answer counts if it comes from there, has that id and that question. One that did not answer
// lately is asked last. SERVFAIL, REFUSED, NOTIMP and FORMERR make the next one be asked; if none does better, the client
// gets the first of these, and SERVFAIL if nobody answers. The query is written anew: it has the client's question, flags
// and DO bit, and none of its EDNS options, which are between neighbours (RFC 6891). An answer that was cut short is
// passed on so if the query came by UDP; if it came by TCP, the upstream is asked again by TCP.
//
// When Limits.InFlight queries wait for upstreams, the next one gets SERVFAIL at once; what the zone knows is answered
// still. Who asks more than Limits.Rate queries a second is read more slowly, until the kernel drops what does not fit into
// the socket's buffer.
package dns
