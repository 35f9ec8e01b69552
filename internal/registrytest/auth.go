package registrytest

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
)

// auth is what a request must show.
type auth struct {
	token          bool
	user, password string
	identity       string
	realm          string
}

// issuedToken is what the token server hands out.
const issuedToken = "issued-token"

// RequireBasic makes the registry ask for a name and a password.
func (r *Registry) RequireBasic(user, password string) {
	r.setAuth(&auth{user: user, password: password})
}

// RequireToken makes the registry ask for a bearer token, which its own token server (at /token) gives for a name and
// a password, or for an identity token. An empty user gives it to everybody. A realm that is not empty is named as the
// token server in place of it.
func (r *Registry) RequireToken(user, password, identity, realm string) {
	if realm == "" {
		realm = r.URL() + "/token"
	}
	r.setAuth(&auth{token: true, user: user, password: password, identity: identity, realm: realm})
}

func (r *Registry) setAuth(a *auth) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.auth = a
}

// allow answers by itself and returns false where the request may not go on.
func (a *auth) allow(r *Registry, w http.ResponseWriter, req *http.Request, body string) bool {
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(a.user+":"+a.password))
	header := req.Header.Get("Authorization")
	if !a.token {
		if header == basic {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return false
	}
	if req.URL.Path == "/token" {
		form, _ := url.ParseQuery(body)
		ok := a.user == "" || header == basic
		if req.Method == http.MethodPost {
			ok = a.identity != "" && form.Get("grant_type") == "refresh_token" && form.Get("refresh_token") == a.identity
		}
		if !ok {
			fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "wrong name or password")
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"token": issuedToken, "access_token": issuedToken, "expires_in": 300})
		return false
	}
	if strings.TrimPrefix(header, "Bearer ") == issuedToken {
		return true
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="`+a.realm+`",service="test"`)
	fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	return false
}
