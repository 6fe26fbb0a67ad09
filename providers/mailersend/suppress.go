package mailersend

import (
	"context"
	"net/url"
	"strconv"
	"strings"

	"smtpbridge/envelope"
	"smtpbridge/providers"
)

// suppressionPage is the size of a page, suppressionPages how many are read: a hundred thousand entries of a kind.
const (
	suppressionPage  = 100
	suppressionPages = 1000
)

// suppressionLists are MailerSend's lists and what they say. The on-hold list is left out: MailerSend takes addresses off it by itself.
var suppressionLists = []struct{ path, reason string }{
	{"hard-bounces", "bounced"}, {"spam-complaints", "complained"}, {"blocklist", "manual"}, {"unsubscribes", "unsubscribed"},
}

// suppressionRows is a page of any of the lists: https://developers.mailersend.com/api/v1/recipients.html
type suppressionRows struct {
	Data *list[struct {
		Pattern   text        `json:"pattern"` // of the blocklist, instead of a recipient
		CreatedAt text        `json:"created_at"`
		Domain    namedDomain `json:"domain"`
		Recipient struct {
			Email  text        `json:"email"`
			Domain namedDomain `json:"domain"`
		} `json:"recipient"`
	}] `json:"data"`
}

type namedDomain struct {
	Name text `json:"name"`
}

// Suppressions reads the lists. The token needs the scope suppressions_read. Patterns that are no address are left out.
func (p *provider) Suppressions(ctx context.Context, each func(providers.Suppressed) error) error {
	for _, l := range suppressionLists {
		for page := 1; page <= suppressionPages; page++ {
			q := url.Values{"page": {strconv.Itoa(page)}, "limit": {strconv.Itoa(suppressionPage)}}
			if p.set.DomainID != "" {
				q.Set("domain_id", p.set.DomainID)
			}
			resp, err := p.get(ctx, "suppressions", "suppressions/"+l.path, q)
			if err != nil {
				return err
			}
			if resp == nil {
				return &providers.Error{Provider: name, Op: "suppressions", Kind: providers.Operator, Msg: "the token may not read " + l.path + ": it needs the scope suppressions_read"}
			}
			var rows suppressionRows
			if err := resp.JSON(&rows); err != nil || rows.Data == nil {
				return &providers.Error{Provider: name, Op: "suppressions", Kind: providers.Transient, HTTPStatus: resp.Status, Msg: "the answer has no list of " + l.path, Err: err}
			}
			for _, row := range *rows.Data {
				s := providers.Suppressed{
					Address: strings.TrimSpace(first(row.Recipient.Email, row.Pattern)), Domain: envelope.FoldDomain(first(row.Recipient.Domain.Name, row.Domain.Name)),
					Reason: l.reason, Created: parseTime(string(row.CreatedAt)),
				}
				if envelope.ValidateAddr(s.Address) != nil || strings.Contains(s.Address, "*") {
					continue
				}
				if err := each(s); err != nil {
					return err
				}
			}
			if len(*rows.Data) < suppressionPage {
				break
			}
		}
	}
	return nil
}
