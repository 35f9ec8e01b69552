package netdrv

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Where Docker or ufw is, the chain FORWARD of iptables' table filter drops what nobody has accepted there: a verdict of our own
// tables cannot change that. So what comes from or goes to our bridges is accepted there too, by rules as iptables makes them
// (iptables -S shows them). They open nothing: what our own tables drop is dropped whatever others accept.
//
// Docker makes its chains anew when it starts, and ufw when it is reloaded. A monitor puts the rules back.

// foreignComment begins the comments of our rules in others' tables.
const foreignComment = "coracle: "

// foreignSettle is how long the monitor waits for others to be done.
const foreignSettle = 50 * time.Millisecond

// foreignRules are our rules in others' tables.
type foreignRules struct {
	log      *slog.Logger
	nf       *nfConn
	monitor  *os.File
	lock     func(context.Context) (func(), error)
	lost     func(context.Context, *removedTables) error // is called, under the lock, when somebody has removed tables of networks
	present  atomic.Bool                                 // the rules are as they have to be, as far as the monitor knows
	stop     context.CancelFunc
	stopped  sync.WaitGroup
	mu       sync.Mutex
	removed  *removedTables // since lost was called; nil: none
	reported map[string]bool
}

// removedTables are tables of networks that somebody has removed.
type removedTables struct {
	names map[string]bool
	all   bool // perhaps any
}

func (r *removedTables) has(name string) bool { return r.all || r.names[name] }

// watchForeign watches the tables of the calling thread's network namespace, and calls lost when one of a network is removed.
func watchForeign(lock func(context.Context) (func(), error), log *slog.Logger, lost func(context.Context, *removedTables) error) (*foreignRules, error) {
	if lock == nil {
		lock = func(context.Context) (func(), error) { return func() {}, nil }
	}
	nf, err := openNF()
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err == nil {
		if err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES)
		}
		if err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		nf.Close()
		return nil, kernelError("watch the firewall", "", os.NewSyscallError("socket", err))
	}
	r := &foreignRules{log: log, lock: lock, lost: lost, nf: nf, monitor: os.NewFile(uintptr(fd), "nftables monitor"), reported: map[string]bool{}}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	changed := make(chan struct{}, 1)
	r.stopped.Add(2)
	go r.listen(changed)
	go r.restore(ctx, changed)
	return r, nil
}

func (r *foreignRules) Close() error {
	r.stop()
	err := r.monitor.Close()
	r.stopped.Wait()
	r.nf.Close()
	return err
}

// listen tells of changes to the rules and chains of others.
func (r *foreignRules) listen(changed chan<- struct{}) {
	defer r.stopped.Done()
	b := make([]byte, 64<<10)
	raw, err := r.monitor.SyscallConn()
	for err == nil {
		var n int
		var failed error
		err = raw.Read(func(fd uintptr) bool {
			n, _, failed = unix.Recvfrom(int(fd), b, 0)
			return !errors.Is(failed, unix.EAGAIN)
		})
		relevant := failed != nil // more than fitted into the socket
		if relevant {
			r.noteRemoved("")
		}
		eachNF(b[:max(n, 0)], func(m nfAnswer) {
			switch m.kind &^ (unix.NFNL_SUBSYS_NFTABLES << 8) {
			case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE:
				relevant = relevant || m.family == unix.NFPROTO_IPV4 || m.family == unix.NFPROTO_IPV6
				if m.kind != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE {
					break
				}
				if name := parseTable(m).name; isNetworkTable(name) {
					r.noteRemoved(name)
					relevant = true
				}
			}
		})
		if relevant && err == nil {
			r.present.Store(false)
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}
}

// noteRemoved notes that somebody has removed a table of a network; empty: perhaps any.
func (r *foreignRules) noteRemoved(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.removed == nil {
		r.removed = &removedTables{names: map[string]bool{}}
	}
	r.removed.names[name] = true
	r.removed.all = r.removed.all || name == ""
}

// takeRemoved returns what was noted since the last call.
func (r *foreignRules) takeRemoved() *removedTables {
	r.mu.Lock()
	defer r.mu.Unlock()
	removed := r.removed
	r.removed = nil
	return removed
}

// restore puts back what somebody has removed.
func (r *foreignRules) restore(ctx context.Context, changed <-chan struct{}) {
	defer r.stopped.Done()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(foreignSettle):
		}
		select {
		case <-changed: // is seen to as well
		default:
		}
		if err := r.putBack(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("cannot put back what somebody removed from the firewall", "error", err)
		}
	}
}

// putBack makes tables and rules again that are gone. Under the lock: where another program is bringing a network up or taking
// it down, what is missing is not lost.
func (r *foreignRules) putBack(ctx context.Context) error {
	unlock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	if removed := r.takeRemoved(); removed != nil {
		errs = append(errs, r.lost(ctx, removed))
	}
	tables, err := r.nf.tables()
	if err != nil {
		return errors.Join(append(errs, nfErr("list tables", err))...)
	}
	routed := slices.ContainsFunc(tables, func(t *nfTable) bool {
		return t.family == unix.NFPROTO_INET && isNetworkTable(t.name) && string(udBytes(t.userdata, udNote)) != string(noteInternal)
	})
	if routed {
		errs = append(errs, r.need())
	}
	return errors.Join(errs...)
}

// need makes sure that the rules are where they have to be.
func (r *foreignRules) need() error {
	if r.present.Load() {
		return nil
	}
	r.present.Store(true) // before looking: a change meanwhile takes it back
	for _, family := range []uint8{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		if err := r.nf.retry(func(g uint32) error { return r.put(g, family, true) }); err != nil {
			r.present.Store(false)
			return nfErr("accept containers' packets in the "+familyNames[family]+" chain FORWARD", err)
		}
	}
	return r.report()
}

// remove removes the rules.
func (r *foreignRules) remove() error {
	r.present.Store(false)
	for _, family := range []uint8{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		if err := r.nf.retry(func(g uint32) error { return r.put(g, family, false) }); err != nil {
			return nfErr("remove our rules from the "+familyNames[family]+" chain FORWARD", err)
		}
	}
	return nil
}

// put makes our rules of a family those that are wanted, if they are not.
func (r *foreignRules) put(generation uint32, family uint8, wanted bool) error {
	table, err := r.nf.readFilter(family)
	if err != nil {
		return err
	}
	var chain string
	var before uint64 // the handle of the rule that ours are put before
	var want []*ruleSpec
	if wanted {
		chain, before, want = table.place()
	}
	var messages []nfMessage
	var have []string
	for _, rule := range table.rules {
		if rule.ours {
			have = append(have, rule.chain+" "+rule.comment)
			messages = append(messages, rule.remove(family))
		}
	}
	var need []string
	for _, rule := range want {
		need = append(need, chain+" "+rule.reason)
	}
	if slices.Equal(have, need) {
		return nil
	}
	if before == 0 && chain == "FORWARD" { // each goes to the top
		slices.Reverse(want)
	}
	for _, rule := range want {
		m, err := rule.message(family, "filter", chain)
		if err != nil {
			return err
		}
		switch {
		case before != 0:
			m.flags &^= unix.NLM_F_APPEND
			m.attrs.u64(unix.NFTA_RULE_POSITION, before)
		case chain == "FORWARD":
			m.flags &^= unix.NLM_F_APPEND
		}
		messages = append(messages, m)
	}
	if err := r.nf.batch(generation, messages...); err != nil {
		return err
	}
	if len(want) > 0 {
		r.log.Info("accepted containers' packets in a firewall of others", "table", familyNames[family]+" filter", "chain", chain)
	}
	return nil
}

// filterTable is what is to be known of iptables' table filter.
type filterTable struct {
	drops  bool // what nobody accepts in FORWARD
	chains map[string]bool
	rules  []filterRule
}

// filterRule is a rule of iptables' table filter.
type filterRule struct {
	chain, comment string
	handle         uint64
	ours           bool
	bare           bool   // it has nothing but a verdict
	verdict        int32  // of expr.VerdictKind
	target         string // where it jumps to
	oifname        string // the interface that it is about, if there is one
}

func (c *nfConn) readFilter(family uint8) (*filterTable, error) {
	t := &filterTable{}
	var a attributes
	a.str(unix.NFTA_CHAIN_TABLE, "filter")
	err := c.ask(true, nfMessage{kind: unix.NFT_MSG_GETCHAIN, family: family, what: "the chains of the table filter"},
		func() { *t = filterTable{chains: map[string]bool{}} }, func(m nfAnswer) {
			var table, name string
			policy := uint32(1)
			eachAttribute(m.data, func(kind uint16, v []byte) {
				switch kind {
				case unix.NFTA_CHAIN_TABLE:
					table = cString(v)
				case unix.NFTA_CHAIN_NAME:
					name = cString(v)
				case unix.NFTA_CHAIN_POLICY:
					policy = be32(v)
				}
			})
			if table == "filter" {
				t.chains[name] = true
				t.drops = t.drops || name == "FORWARD" && policy == 0
			}
		})
	if err != nil || !t.chains["FORWARD"] {
		return t, err
	}
	a = nil
	a.str(unix.NFTA_RULE_TABLE, "filter")
	err = c.ask(true, nfMessage{kind: unix.NFT_MSG_GETRULE, family: family, attrs: a, what: "the rules of the table filter"},
		func() { t.rules = nil }, func(m nfAnswer) {
			if r, table := parseFilterRule(m.data); table == "filter" {
				t.rules = append(t.rules, r)
			}
		})
	return t, err
}

func parseFilterRule(b []byte) (r filterRule, table string) {
	eachAttribute(b, func(kind uint16, v []byte) {
		switch kind {
		case unix.NFTA_RULE_TABLE:
			table = cString(v)
		case unix.NFTA_RULE_CHAIN:
			r.chain = cString(v)
		case unix.NFTA_RULE_HANDLE:
			if len(v) == 8 {
				r.handle = binary.BigEndian.Uint64(v)
			}
		case unix.NFTA_RULE_USERDATA:
			r.comment, _ = udString(v, udComment)
			r.ours = strings.HasPrefix(r.comment, foreignComment)
		case unix.NFTA_RULE_EXPRESSIONS:
			r.bare = true
			eachAttribute(v, func(_ uint16, v []byte) { r.parseExpression(v) })
		}
	})
	return r, table
}

func (r *filterRule) parseExpression(b []byte) {
	var name string
	var data []byte
	eachAttribute(b, func(kind uint16, v []byte) {
		switch kind {
		case unix.NFTA_EXPR_NAME:
			name = cString(v)
		case unix.NFTA_EXPR_DATA:
			data = v
		}
	})
	nested := func(b []byte, want uint16) (found []byte) {
		eachAttribute(b, func(kind uint16, v []byte) {
			if kind == want {
				found = v
			}
		})
		return found
	}
	switch name {
	case "immediate":
		verdict := nested(nested(data, unix.NFTA_IMMEDIATE_DATA), unix.NFTA_DATA_VERDICT)
		r.verdict = int32(be32(nested(verdict, unix.NFTA_VERDICT_CODE)))
		r.target = cString(nested(verdict, unix.NFTA_VERDICT_CHAIN))
	case "counter":
	case "meta":
		r.bare = false
		if be32(nested(data, unix.NFTA_META_KEY)) == unix.NFT_META_OIFNAME {
			r.oifname = "?" // the comparison that follows says which
		}
	case "cmp":
		r.bare = false // a name without its zero is the beginning of names
		if v := nested(nested(data, unix.NFTA_CMP_DATA), unix.NFTA_DATA_VALUE); r.oifname == "?" && bytes.HasSuffix(v, []byte{0}) && be32(nested(data, unix.NFTA_CMP_OP)) == unix.NFT_CMP_EQ {
			r.oifname = cString(v)
		}
	default:
		r.bare = false
	}
}

func (r *filterRule) remove(family uint8) nfMessage {
	var a attributes
	a.str(unix.NFTA_RULE_TABLE, "filter")
	a.str(unix.NFTA_RULE_CHAIN, r.chain)
	a.u64(unix.NFTA_RULE_HANDLE, r.handle)
	return nfMessage{kind: unix.NFT_MSG_DELRULE, family: family, attrs: a, what: "a rule of ours in " + r.chain}
}

// place says which rules of ours have to be in which chain, before which rule (0: none). No rules where FORWARD drops nothing.
func (t *filterTable) place() (chain string, before uint64, rules []*ruleSpec) {
	if !t.chains["FORWARD"] {
		return "", 0, nil
	}
	chain = "FORWARD"
	others := false
	var docker []string
	for _, r := range t.rules {
		others = others || r.chain == "FORWARD" && !r.ours
		if r.chain == "FORWARD" && r.target == "DOCKER-USER" && t.chains["DOCKER-USER"] {
			chain = "DOCKER-USER"
		}
		if r.target == "DOCKER" && r.oifname != "" && r.oifname != "?" && !slices.Contains(docker, r.oifname) {
			docker = append(docker, r.oifname)
		}
	}
	if !t.drops && !others {
		return "", 0, nil
	}
	if chain == "DOCKER-USER" {
		for _, r := range t.rules {
			if r.chain != chain || r.ours {
				continue
			}
			before = 0
			if r.bare && expr.VerdictKind(r.verdict) == expr.VerdictReturn {
				before = r.handle // the last rule, as Docker makes it
			}
		}
		// What goes from our containers to Docker's is Docker's to decide.
		slices.Sort(docker)
		for _, bridge := range docker {
			rules = append(rules, foreignRule(foreignComment+"to "+bridge, expr.VerdictReturn,
				&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(bridgePrefix)},
				&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(bridge)}))
		}
	}
	return chain, before, append(rules,
		foreignRule(foreignComment+"from containers", expr.VerdictAccept, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(bridgePrefix)}),
		foreignRule(foreignComment+"to containers", expr.VerdictAccept, &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(bridgePrefix)}))
}

// foreignRule is a rule as iptables makes it: matches, a counter and a verdict.
func foreignRule(comment string, verdict expr.VerdictKind, matches ...expr.Any) *ruleSpec {
	return &ruleSpec{[]clause{{exprs: append(matches, &expr.Counter{}, &expr.Verdict{Kind: verdict})}}, comment}
}

// report tells, once, of firewalls that we do not change.
func (r *foreignRules) report() error {
	if b, err := os.ReadFile("/proc/thread-self/net/ip_tables_names"); err == nil && strings.Contains("\n"+string(b), "\nfilter\n") {
		r.once("legacy iptables has a table filter, which we do not change: if its chain FORWARD drops, containers reach nobody outside",
			"fix", "iptables-legacy -I FORWARD -i cor-+ -j ACCEPT; iptables-legacy -I FORWARD -o cor-+ -j ACCEPT, or use iptables-nft")
	}
	return r.nf.ask(true, nfMessage{kind: unix.NFT_MSG_GETCHAIN}, func() {}, func(m nfAnswer) {
		var table, name string
		hook, policy := uint32(unix.NF_INET_NUMHOOKS), uint32(1)
		eachAttribute(m.data, func(kind uint16, v []byte) {
			switch kind {
			case unix.NFTA_CHAIN_TABLE:
				table = cString(v)
			case unix.NFTA_CHAIN_NAME:
				name = cString(v)
			case unix.NFTA_CHAIN_POLICY:
				policy = be32(v)
			case unix.NFTA_CHAIN_HOOK:
				eachAttribute(v, func(kind uint16, v []byte) {
					if kind == unix.NFTA_HOOK_HOOKNUM {
						hook = be32(v)
					}
				})
			}
		})
		routing := m.family == unix.NFPROTO_INET || m.family == unix.NFPROTO_IPV4 || m.family == unix.NFPROTO_IPV6
		ip := table == "filter" && m.family != unix.NFPROTO_INET
		if routing && hook == unix.NF_INET_FORWARD && policy == 0 && !ip && !strings.HasPrefix(table, tablePrefix) {
			r.once("a firewall drops what it does not accept, and we do not change it: containers may reach nobody outside",
				"table", familyNames[m.family]+" "+table, "chain", name, "fix", `accept there what has iifname or oifname "cor-*"`)
		}
	})
}

func (r *foreignRules) once(message string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range args {
		if s, ok := a.(string); ok {
			message += "\x00" + s
		}
	}
	if !r.reported[message] {
		r.reported[message] = true
		text, _, _ := strings.Cut(message, "\x00")
		r.log.Warn(text, args...)
	}
}
