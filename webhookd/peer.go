package webhookd

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// peer is the address the request comes from, for the log: that of the socket, or, behind a trusted
// proxy, the last address in X-Forwarded-For that is no trusted proxy itself. What stands before
// that one was written by the client and is worth nothing.
func (s *state) peer(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		// A unix socket: only a proxy of this machine gets there.
		if len(s.TrustedProxies) == 0 {
			return "local"
		}
	} else if addr = addr.Unmap(); !s.trusted(addr) {
		return addr.String()
	}
	var list []string
	for _, v := range r.Header.Values("X-Forwarded-For") {
		list = append(list, strings.Split(v, ",")...)
	}
	for i := len(list) - 1; i >= 0; i-- {
		a, err := netip.ParseAddr(strings.TrimSpace(list[i]))
		if err != nil {
			break
		}
		addr = a.Unmap().WithZone("")
		if !s.trusted(addr) {
			break
		}
	}
	if !addr.IsValid() {
		return "local"
	}
	return addr.String()
}

func (s *state) trusted(a netip.Addr) bool {
	for _, p := range s.TrustedProxies {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
