package twin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

const (
	maxBulk     = 500
	maxTrial    = 5
	maxBulkBody = 50_000_000
)

// bulk is a batch. Its mails are checked when it is taken, and the outcome is told by its status.
type bulk struct {
	polls      int
	total      int
	ids        []string
	errs       map[string]map[string][]string
	suppressed map[string][]any
}

func (t *Twin) bulkEmail(w http.ResponseWriter, body []byte, lose bool) {
	limit := maxBulk
	if t.o.Plan == "trial" {
		limit = maxTrial
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	var qs []request
	switch err := d.Decode(&qs); {
	case err != nil || d.More() || len(qs) == 0:
		refuse(w, http.StatusBadRequest, fmt.Sprintf("The request is not one JSON list of the documented form: %v #MS40001", err))
		return
	case len(qs) > limit:
		refuse(w, http.StatusUnprocessableEntity, fmt.Sprintf("A bulk request may not have more than %d emails. #MS42229", limit))
		return
	case len(body) > maxBulkBody:
		refuse(w, http.StatusUnprocessableEntity, "A bulk request may not be greater than 50 MB. #MS42230")
		return
	}
	b := &bulk{total: len(qs), errs: map[string]map[string][]string{}, suppressed: map[string][]any{}}
	t.mu.Lock()
	id := fmt.Sprintf("%024x", 0xb000000+len(t.bulks)+1)
	t.bulks[id] = b
	t.mu.Unlock()
	for i := range qs {
		m, errs := t.check(&qs[i])
		if len(errs) > 0 {
			b.errs["message."+strconv.Itoa(i)] = errs
			continue
		}
		all := len(m.Rcpts())
		left := t.suppress(&m)
		m.Bulk = id
		t.mu.Lock()
		if len(m.Rcpts()) > 0 || all == 0 {
			t.keep(&m)
		} else {
			t.nextID++ // such a mail has an id, too
			m.ID = fmt.Sprintf("%024x", t.nextID)
		}
		t.mu.Unlock()
		b.ids = append(b.ids, m.ID)
		if len(left) > 0 {
			b.suppressed[m.ID] = left
		}
	}
	if lose {
		hangUp(w)
		return
	}
	answer(w, http.StatusAccepted, map[string]any{"message": "The bulk email is being processed.", "bulk_email_id": id})
}

func (t *Twin) bulkStatus(w http.ResponseWriter, id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.bulks[id]
	if b == nil {
		refuse(w, http.StatusNotFound, "Resource not found.")
		return
	}
	data := map[string]any{
		"id": id, "state": "completed", "total_recipients_count": b.total, "suppressed_recipients_count": len(b.suppressed), "suppressed_recipients": b.suppressed,
		"validation_errors_count": len(b.errs), "validation_errors": b.errs, "messages_id": b.ids,
	}
	if b.polls++; b.polls <= t.o.BulkPolls {
		data["state"], data["messages_id"], data["validation_errors"], data["suppressed_recipients"] = "processing", nil, nil, nil
	}
	answer(w, http.StatusOK, map[string]any{"data": data})
}
