package deliver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"smtpbridge/providers"
	"smtpbridge/translate"
)

// explainBody bounds a request body in an explanation; what is longer is cut and said to be.
const explainBody = 64 << 20

// secretMask is what credentials are shown as.
const secretMask = "<secret>"

// Explanation says what would become of a mail. Route, Account, Losses and Requests are those of the first account that would
// be used; Groups has every recipient and every account side by side.
type Explanation struct {
	Message  json.RawMessage  `json:"message"` // as `smtpbridge parse` prints it; null when it cannot be read
	From     string           `json:"from"`    // the address it is routed by
	Route    string           `json:"route"`
	Account  string           `json:"account"`
	Refusal  string           `json:"refusal,omitempty"` // the SMTP reply, when nobody would receive it
	Losses   []translate.Loss `json:"losses"`
	Requests []ExplainRequest `json:"requests"`
	Groups   []ExplainGroup   `json:"groups,omitempty"`
	Refused  []ExplainRefused `json:"refused,omitempty"`
}

// ExplainGroup is recipients that share a route and accounts.
type ExplainGroup struct {
	Route      string           `json:"route"`
	Recipients []string         `json:"recipients"`
	Accounts   []ExplainAccount `json:"accounts"`
}

// What an account of a route is for a mail.
const (
	verdictFirst    = "first"    // it is tried first
	verdictFailover = "failover" // it is tried when those before it fail
	verdictRefused  = "refused"  // it is never tried
)

// ExplainAccount is what one account of the route would do.
type ExplainAccount struct {
	Account  string           `json:"account"`
	Provider string           `json:"provider"`
	Verdict  string           `json:"verdict"`
	Used     bool             `json:"used"` // it is among those the mail would be tried by, in this order
	Refusal  string           `json:"refusal,omitempty"`
	Worst    string           `json:"worst,omitempty"` // the greatest severity among the losses
	Losses   []translate.Loss `json:"losses"`
	Requests []ExplainRequest `json:"requests,omitempty"`
}

// ExplainRequest is one API call as it would be made. Secrets are shown as <secret>.
type ExplainRequest struct {
	Method     string            `json:"method,omitempty"`
	URL        string            `json:"url,omitempty"`
	Headers    map[string]string `json:"headers,omitempty"`
	Body       any               `json:"body,omitempty"` // JSON as it is, anything else as a string
	Truncated  bool              `json:"truncated,omitempty"`
	Recipients []string          `json:"recipients"`
	Note       string            `json:"note,omitempty"` // why there is no request to show
}

// ExplainRefused is a recipient that would not be served.
type ExplainRefused struct {
	Recipient string `json:"recipient"`
	Reply     string `json:"reply"`
}

// Explain plans a mail and shows the requests that would be made, sending nothing. A refusal is part of the explanation;
// the error is our own fault.
func (p *Planner) Explain(req PlanRequest) (*Explanation, error) {
	ex := &Explanation{Losses: []translate.Loss{}, Requests: []ExplainRequest{}}
	plan, err := p.plan(req)
	var refusal *Refusal
	switch {
	case errors.As(err, &refusal):
		ex.Refusal = refusal.Error()
	case err != nil:
		return nil, err
	}
	if plan == nil {
		return ex, nil
	}
	ex.From = plan.From
	if plan.Message != nil {
		var buf bytes.Buffer
		if err := plan.Message.WriteJSON(&buf); err != nil {
			return nil, fmt.Errorf("describe mail: %w", err)
		}
		ex.Message = buf.Bytes()
	}
	for _, g := range plan.Groups {
		eg := ExplainGroup{Route: g.Name()}
		for _, n := range g.Rcpts {
			eg.Recipients = append(eg.Recipients, plan.Mail.Envelope.Rcpts[n].Addr)
		}
		for _, v := range g.Verdicts {
			ea, err := p.explainAccount(&g, v, req.Envelope.ID)
			if err != nil {
				return nil, err
			}
			if ex.Account == "" && ea.Used {
				ex.Route, ex.Account, ex.Losses, ex.Requests = eg.Route, ea.Account, ea.Losses, ea.Requests
			}
			eg.Accounts = append(eg.Accounts, ea)
		}
		if ex.Route == "" {
			ex.Route = eg.Route
		}
		ex.Groups = append(ex.Groups, eg)
	}
	for _, r := range plan.Refused {
		ex.Refused = append(ex.Refused, ExplainRefused{Recipient: r.Rcpt.Addr, Reply: r.Refusal.Error()})
	}
	return ex, nil
}

func (p *Planner) explainAccount(g *Group, v Verdict, id string) (ExplainAccount, error) {
	ea := ExplainAccount{Account: v.Account, Losses: v.Losses, Verdict: verdictRefused}
	if i := slices.Index(g.Accounts, v.Account); i >= 0 {
		ea.Used, ea.Verdict = true, verdictFailover
		if i == 0 {
			ea.Verdict = verdictFirst
		}
	}
	if len(ea.Losses) == 0 {
		ea.Losses = []translate.Loss{}
	} else {
		ea.Worst = slices.MaxFunc(ea.Losses, func(a, b translate.Loss) int { return int(a.Severity) - int(b.Severity) }).Severity.String()
	}
	if v.Refusal != nil {
		ea.Refusal = v.Refusal.Error()
	}
	a, ok := p.c.Accounts[v.Account]
	if !ok {
		return ea, nil
	}
	ea.Provider = a.Info.Name
	for i, m := range v.Calls {
		// A stand-in for the reference that a real call gets.
		m.Ref = fmt.Sprintf("%s-%08d", strings.ToLower(id), i+1)
		m.IdempotencyKey = m.Ref
		er := ExplainRequest{}
		for _, r := range m.Rcpts {
			er.Recipients = append(er.Recipients, r.Addr)
		}
		prep, ok := a.Provider.(providers.Preparer)
		if !ok {
			er.Note = a.Info.Name + " makes no HTTP request"
		} else if err := er.prepare(prep, m); err != nil {
			return ea, fmt.Errorf("account %s: %w", v.Account, err)
		}
		ea.Requests = append(ea.Requests, er)
	}
	return ea, nil
}

func (er *ExplainRequest) prepare(prep providers.Preparer, m *translate.Mail) error {
	r, err := prep.Prepare(m)
	if err != nil {
		return err
	}
	er.Method, er.URL = r.Method, r.URL.Redacted()
	er.Headers = map[string]string{}
	for k, vs := range r.Header {
		er.Headers[k] = strings.Join(vs, ", ")
		if http.CanonicalHeaderKey(k) == "Authorization" {
			scheme, _, ok := strings.Cut(er.Headers[k], " ")
			if er.Headers[k] = secretMask; ok {
				er.Headers[k] = scheme + " " + secretMask
			}
		}
	}
	if r.Body == nil {
		return nil
	}
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, explainBody+1))
	if err != nil {
		return fmt.Errorf("read request body: %w", err)
	}
	if len(b) > explainBody {
		b, er.Truncated = b[:explainBody], true
	}
	if strings.Contains(r.Header.Get("Content-Type"), "json") && json.Valid(b) {
		er.Body = json.RawMessage(b)
	} else if utf8.Valid(b) {
		er.Body = string(b)
	} else {
		er.Body = strings.ToValidUTF8(string(b), "\uFFFD")
	}
	return nil
}
