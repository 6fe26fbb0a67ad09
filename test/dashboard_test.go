package test

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/png"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/domsnapshot"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	bridgesmtp "smtpbridge/smtp"
)

const dashboardMail = "From: Shop <shop@example.com>\r\nTo: Ada <ada@example.net>\r\nSubject: %s\r\nMIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary=b\r\n\r\n" +
	"--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nDear Ada,\r\n\r\nyour parcel left us today.\r\n--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" +
	"<html><body style=\"font-family:sans-serif\"><h2>Your order is on its way</h2><p>Dear Ada, your parcel left us today.</p><img src=\"http://tracker.example.com/pixel.gif\" alt=\"\"></body></html>\r\n--b--\r\n"

// browsing is one headless browser at the dashboard of a bridge, and what went wrong in it.
type browsing struct {
	t    *testing.T
	ctx  context.Context
	base string
	shot string // where screenshots go, "" = nowhere
	size string

	mu       sync.Mutex
	problems []string
}

// TestDashboardInBrowser clicks through every page as a person would, on a desk and on a phone.
func TestDashboardInBrowser(t *testing.T) {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("SMTPBRIDGE_REQUIRE_CLIENTS") != "" {
			t.Fatal("chromium is missing")
		}
		t.Skip("needs chromium")
	}
	dir, err := os.MkdirTemp("", "sb-dash")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	hash, err := bridgesmtp.HashPassword("s3cret")
	if err != nil {
		t.Fatal(err)
	}
	address := func() string { return fmt.Sprint("127.0.0.1:", freePort(t)) }
	smtpAddr, hookAddr, adminAddr := address(), address(), address()
	b := newBridge(t, dir, fmt.Sprintf(`hostname = "bridge.example.com"
data_dir = %q
[[listener]]
name = "apps"
address = %q
[[account]]
name = "sandbox"
provider = "sandbox"
options = { delay = "10ms" }
[[account]]
name = "later"
provider = "sandbox"
[[route]]
name = "newsletter"
senders = ["news.example.com"]
accounts = ["later"]
[[route]]
senders = ["*"]
accounts = ["sandbox"]
[webhook]
address = %q
public_url = "http://%s"
[events]
subject = true
[retention]
bodies = "1d"
[suppression]
enabled = true
[admin]
address = %q
password_hash = %q
`, dir, smtpAddr, hookAddr, hookAddr, adminAddr, hash))
	b.start()
	b.run("account", "pause", "later", "--reason", "the list is being cleaned")
	send := func(from, to, subject string) {
		t.Helper()
		text := strings.Replace(fmt.Sprintf(dashboardMail, subject), "shop@example.com", from, 1)
		if err := smtp.SendMail(smtpAddr, nil, from, strings.Split(to, " "), []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	send("shop@example.com", "ada@example.net", "Your order is on its way")
	send("shop@example.com", "bounce@example.net ada@example.net joerg.mueller-luedenscheidt@subsidiary.example.net", "Rechnung Nr. 2026-1187 ✓")
	send("shop@example.com", "complaint@example.net", "Newsletter")
	send("news@news.example.com", "subscriber@example.net", "November news")
	send("news@news.example.com", "reader@example.net", "November news")
	until(t, 20*time.Second, "the mails had their life", func() bool {
		out := b.run("events", "--json")
		return strings.Contains(out, `"event":"complained"`) && strings.Contains(out, `"event":"bounced"`)
	})

	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(chromium), chromedp.NoSandbox, chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("disable-features", "site-per-process,Translate,BlinkGenPropertyTrees,IsolateSandboxedIframes")) // one process: frames can be read
	alloc, stop := chromedp.NewExecAllocator(t.Context(), opts...)
	defer stop()
	ctx, stop := chromedp.NewContext(alloc)
	defer stop()
	w := &browsing{t: t, ctx: ctx, base: "http://" + adminAddr, shot: os.Getenv("SMTPBRIDGE_SCREENSHOTS")}
	if err := chromedp.Run(ctx); err != nil { // starts the browser
		t.Fatal(err)
	}
	chromedp.ListenTarget(ctx, w.watch)
	w.do(network.Enable(), cdplog.Enable(), page.Enable())
	for _, size := range []struct{ wide, high int64 }{{1280, 900}, {390, 844}} {
		w.size = fmt.Sprint(size.wide)
		w.do(chromedp.EmulateViewport(size.wide, size.high))
		w.tour(send)
	}
	for _, p := range w.problems {
		t.Error(p)
	}
}

// watch notes everything a page should not do.
func (w *browsing) watch(ev any) {
	note := func(format string, args ...any) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.problems = append(w.problems, fmt.Sprintf(format, args...))
	}
	switch ev := ev.(type) {
	case *cdpruntime.EventExceptionThrown:
		note("exception: %v", ev.ExceptionDetails)
	case *cdpruntime.EventConsoleAPICalled:
		if ev.Type == cdpruntime.APITypeError || ev.Type == cdpruntime.APITypeWarning {
			note("console: %v", ev.Args)
		}
	case *cdplog.EventEntryAdded:
		// The preview's policy keeps the tracking pixel of the mail out and says so.
		if ev.Entry.Level == cdplog.LevelError && !strings.Contains(ev.Entry.Text, "tracker.example.com") && !strings.HasSuffix(ev.Entry.URL, "/mail/nothing") {
			note("log: %s %s", ev.Entry.Text, ev.Entry.URL)
		}
	case *network.EventRequestWillBeSent:
		if u := ev.Request.URL; !strings.HasPrefix(u, w.base+"/") && !strings.HasPrefix(u, "data:") && u != "about:blank" {
			note("request %s to %s", ev.RequestID, u)
		}
	case *network.EventLoadingFailed:
		if ev.BlockedReason == network.BlockedReasonCsp { // it never left the browser
			w.mu.Lock()
			defer w.mu.Unlock()
			w.problems = slices.DeleteFunc(w.problems, func(p string) bool { return strings.HasPrefix(p, fmt.Sprintf("request %s to ", ev.RequestID)) })
		}
	case *page.EventJavascriptDialogOpening:
		go func() { _ = chromedp.Run(w.ctx, page.HandleJavaScriptDialog(true)) }() // a person says yes
	}
}

func (w *browsing) do(actions ...chromedp.Action) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		var url, body string
		ctx, cancel := context.WithTimeout(w.ctx, 5*time.Second)
		defer cancel()
		_ = chromedp.Run(ctx, chromedp.Location(&url), chromedp.Text("body", &body))
		w.t.Fatalf("at %s, width %s: %v\n%.1500s", url, w.size, err, body)
	}
}

// says waits until a page shows a text.
func says(text string) chromedp.Action {
	return chromedp.WaitVisible(fmt.Sprintf(`//main//*[contains(text(), %q)]`, text), chromedp.BySearch)
}

func link(text string) string {
	return fmt.Sprintf(`//a[contains(normalize-space(), %q)]`, text)
}

func button(text string) string {
	return fmt.Sprintf(`//button[contains(normalize-space(), %q)]`, text)
}

func click(xpath string) chromedp.Action { return chromedp.Click(xpath, chromedp.BySearch) }

// unfit lists what a person could not use: controls without a name or out of the keyboard's reach, and what sticks out of the window.
const unfit = `(() => {
  const out = [];
  const name = (e) => (e.labels && e.labels.length ? e.labels[0].textContent : e.getAttribute("aria-label") || e.textContent || e.title || "").trim();
  for (const e of document.querySelectorAll("a, button, input:not([type=hidden]), select, textarea, summary, iframe")) {
    if (!e.checkVisibility()) continue;
    if (!name(e)) out.push("no name: " + e.outerHTML.slice(0, 120));
    if (e.tabIndex < 0) out.push("no keyboard: " + e.outerHTML.slice(0, 120));
  }
  for (const e of document.querySelectorAll("img, svg[role=img]")) if (!e.getAttribute("alt") && !e.getAttribute("aria-label")) out.push("no text: " + e.outerHTML.slice(0, 120));
  const wide = document.documentElement.scrollWidth - innerWidth;
  if (wide > 0) out.push("sticks out by " + wide);
  if (!document.title || document.querySelectorAll("h1").length !== 1 || document.documentElement.lang !== "en") out.push("no title, h1 or lang");
  return out;
})()`

// preview waits until the frame with the HTML of a mail says something, and shows it too.
func (w *browsing) preview(text string) {
	w.t.Helper()
	w.do(chromedp.WaitVisible("iframe"))
	until(w.t, 20*time.Second, "the preview says "+text, func() bool { return strings.Contains(w.framed(), text) })
	w.drawn()
}

// framed is the text of the frames of the page.
func (w *browsing) framed() string {
	w.t.Helper()
	var text strings.Builder
	w.do(chromedp.ActionFunc(func(ctx context.Context) error {
		docs, words, err := domsnapshot.CaptureSnapshot([]string{}).Do(ctx)
		if err != nil {
			return err
		}
		for _, d := range docs[1:] {
			for _, n := range d.Nodes.NodeValue {
				if n >= 0 {
					text.WriteString(words[n])
				}
			}
		}
		return nil
	}))
	return text.String()
}

// drawn waits until the frame of the page, if it has one, is seen with more than one colour.
func (w *browsing) drawn() {
	w.t.Helper()
	var box []int
	w.do(chromedp.Evaluate(`(() => {
  const f = document.querySelector("iframe");
  if (!f) return [];
  f.scrollIntoView({block: "start", behavior: "instant"});
  const r = f.getBoundingClientRect();
  return [r.left, r.top, r.right, Math.min(r.bottom, innerHeight)].map(Math.round);
})()`, &box))
	if len(box) == 0 {
		return
	}
	inner := image.Rect(box[0], box[1], box[2], box[3]).Inset(20) // border and grip are not the mail's
	until(w.t, 20*time.Second, "the preview is drawn", func() bool {
		var shot []byte
		w.do(chromedp.CaptureScreenshot(&shot))
		pic, err := png.Decode(bytes.NewReader(shot))
		if err != nil {
			w.t.Fatal(err)
		}
		in := inner.Intersect(pic.Bounds())
		for y := in.Min.Y; y < in.Max.Y; y++ {
			for x := in.Min.X; x < in.Max.X; x++ {
				if pic.At(x, y) != pic.At(in.Max.X-1, in.Max.Y-1) {
					return true
				}
			}
		}
		return false
	})
}

// tabStop goes on with the keyboard: what has the focus now, and whether it can be seen there.
const tabStop = `new Promise((done) => setTimeout(() => {
  const e = document.activeElement;
  if (!e || e === document.body) return done("");
  const s = getComputedStyle(e);
  if (s.outlineStyle === "none" || parseFloat(s.outlineWidth) === 0) return done("no focus seen: " + e.outerHTML.slice(0, 120));
  e.dataset.tabbed = "1";
  done("");
}))`

// untabbed lists the controls that the tab key did not come to.
const untabbed = `[...document.querySelectorAll("a[href], button, input:not([type=hidden]), select, textarea, summary, iframe, pre[tabindex]")]
  .filter((e) => e.checkVisibility() && !e.dataset.tabbed).map((e) => "not reached by the tab key: " + e.outerHTML.slice(0, 120))`

// tabThrough presses the tab key until every control had the focus. Pages with a frame are left out: a browser without a screen
// does not come back from it; unfit sees what is out of the keyboard's reach there.
func (w *browsing) tabThrough(name string) {
	w.t.Helper()
	var left, bad []string
	w.do(chromedp.Evaluate(`document.activeElement.blur()`, nil), chromedp.Evaluate(untabbed, &left))
	for range 2*len(left) + 10 {
		var seen string
		w.do(chromedp.KeyEvent(kb.Tab), chromedp.Evaluate(tabStop, &seen, func(p *cdpruntime.EvaluateParams) *cdpruntime.EvaluateParams { return p.WithAwaitPromise(true) }))
		if seen != "" {
			bad = append(bad, seen)
		}
		if w.do(chromedp.Evaluate(untabbed, &left)); len(left) == 0 {
			break
		}
	}
	for _, b := range append(bad, left...) {
		w.t.Errorf("%s: %s", name, b)
	}
}

// look judges the page that is shown, and takes its pictures.
func (w *browsing) look(name string) {
	w.t.Helper()
	var bad []string
	w.do(chromedp.WaitReady("main"), chromedp.Evaluate(unfit, &bad))
	for _, b := range bad {
		w.t.Errorf("%s, width %s: %s", name, w.size, b)
	}
	if w.size == "1280" {
		w.tabThrough(name)
	}
	if w.shot == "" {
		return
	}
	// A frame that is out of sight is not drawn, so the window gets as high as the page.
	var wide, high int64
	w.do(chromedp.Evaluate(`innerWidth`, &wide), chromedp.Evaluate(`innerHeight`, &high))
	var full int64
	w.do(chromedp.Evaluate(`document.documentElement.scrollHeight`, &full), chromedp.EmulateViewport(wide, min(full, 6000)))
	w.drawn()
	defer w.do(chromedp.EmulateViewport(wide, high))
	for _, scheme := range []string{"light", "dark"} {
		var picture []byte
		w.do(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}), chromedp.FullScreenshot(&picture, 100))
		if err := os.WriteFile(filepath.Join(w.shot, fmt.Sprintf("%s-%s-%s.png", name, w.size, scheme)), picture, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *browsing) tour(send func(from, to, subject string)) {
	t := w.t
	t.Helper()
	// Log in with the keyboard alone: the field has the focus.
	w.do(chromedp.Navigate(w.base+"/mails?state=all"), chromedp.WaitVisible("#password"))
	w.look("login")
	w.do(chromedp.SendKeys("#password", "s3cret\r"), says("Messages"))
	w.do(click(link("Overview")), chromedp.WaitVisible("#overview"))
	w.look("overview")

	// Pause and resume an account.
	w.do(click(`//button[@aria-label="pause account sandbox"]`), says("Account sandbox is stopped"))
	w.do(click(`//button[@aria-label="resume account sandbox"]`), says("Account sandbox sends again"))

	// Find a mail and read it.
	w.do(click(link("Messages")), chromedp.WaitVisible("#q"))
	w.look("messages")
	w.do(chromedp.SendKeys("#q", "rechnung\r"), chromedp.WaitVisible(link("Rechnung Nr."), chromedp.BySearch), click(link("Rechnung Nr.")), says("Recipients"))
	w.preview("Dear Ada, your parcel left us today.")
	w.look("message")
	w.do(chromedp.Navigate(w.base+"/mails?q=nobody@example.org"), says("Nothing found"))
	w.look("nothing")

	// What waits: hold it, release it, delete it.
	subject := "For the bin " + w.size
	send("news@news.example.com", "reader@example.net", subject)
	w.do(chromedp.Navigate(w.base+"/mails?state=queued"), click(link(subject)), chromedp.WaitVisible(button("Hold"), chromedp.BySearch))
	w.preview("Your order is on its way")
	w.look("queued")
	w.do(click(button("Hold")), says("The message is held."), click(button("Release")), says("The message is released."), click(button("Retry now")), says("The message is due now."))
	w.do(click(button("Delete")), says("The message is deleted."))

	// The live view shows what comes.
	w.do(click(link("Events")), chromedp.WaitVisible("#live.on"))
	w.look("events")
	w.do(chromedp.Evaluate(`document.getElementById("tail").dataset.before = document.querySelectorAll("#tail tr").length`, nil))
	send("shop@example.com", "live"+w.size+"@example.net", "Live")
	w.do(chromedp.WaitVisible(link("live"+w.size+"@example.net"), chromedp.BySearch), click(button("Pause")), says("paused"))

	// Suppress an address and forgive it.
	w.do(click(link("Suppressions")), says("Add an address"), click(`//summary`), chromedp.SendKeys("#add", "w"+w.size+"@example.net"), click(button("Add")), says("receives no more mail"))
	w.do(click(link("All")), chromedp.WaitVisible(`//button[@aria-label="Remove w`+w.size+`@example.net"]`, chromedp.BySearch))
	w.look("suppressions")
	w.do(click(`//button[@aria-label="Remove w`+w.size+`@example.net"]`), says("The entry is removed."))

	w.do(chromedp.Navigate(w.base+"/suppressions?address=ada@example.net"), says("is not on the list"), click(`//summary`), chromedp.WaitVisible("#add"))
	w.look("suppress")
	w.do(chromedp.Navigate(w.base+"/mail/nothing"), says("There is no such page"))
	w.look("missing")

	// The sandbox's inbox.
	w.do(click(link("Sandbox inbox")), chromedp.WaitVisible(link("Your order is on its way"), chromedp.BySearch))
	w.look("inbox")
	w.do(click(link("Your order is on its way")), says("Delivered to"))
	w.preview("Dear Ada, your parcel left us today.")
	w.look("inboxmail")
	w.do(chromedp.Navigate(w.base+"/login"), chromedp.WaitVisible("#password"), chromedp.Navigate(w.base+"/"), click(button("Log out")), chromedp.WaitVisible("#password"))
}
