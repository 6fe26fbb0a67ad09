#!/usr/bin/env python3
"""An independent reading of the test mails, by Python's email package (policy.default).

    python3 testdata/oracle.py            rewrites testdata/golden/, one file for each mail of testdata/corpus
    python3 testdata/oracle.py MAIL.eml   prints the reading of one mail

A file has the shape of what "smtpbridge parse" prints. "defects" holds the names of the package's own
defect classes. The source is first brought to CRLF line ends, as it would arrive by SMTP.
"""
import datetime, email, email.message, email.policy, email.utils, encodings.aliases, hashlib, json, pathlib, re, shutil, sys
from email.headerregistry import HeaderRegistry

HERE = pathlib.Path(__file__).parent
encodings.aliases.aliases["windows_874"] = "cp874"  # a name that Python does not know


class Message(email.message.EmailMessage):
    """A message/* part shows the parser another type: it would take it apart, and could not give back its octets."""

    parsing = True

    def get_content_type(self):
        ctype = super().get_content_type()
        return "application/leaf" if Message.parsing and ctype.startswith("message/") else ctype


POLICY = email.policy.default.clone(message_factory=Message)
plain = HeaderRegistry(use_default_map=False)


def unraw(s):
    """Raw 8-bit octets are UTF-8, and those that are none Windows-1252."""
    s = s.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda m: cp1252(ord(m.group()) - 0xDC00), s)


def cp1252(c):
    return chr(c) if c in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else bytes([c]).decode("cp1252")


def value_of(name, raw):
    text = str(plain(name, unraw("".join(raw.splitlines()))))
    return tidy(text)


def tidy(s):
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", unraw(s)).strip(" ")


def addresses(msg, name):
    out = []
    for value in msg.get_all(name, []):
        try:
            for a in value.addresses:
                try:
                    spec = a.addr_spec
                except Exception:
                    spec = (a.username or "") + ("@" + a.domain if a.domain else "")
                if spec in ("", "<>"):
                    continue
                out.append({"name": a.display_name or "", "address": spec})
        except Exception as e:
            out.append({"error": type(e).__name__})
    return out


def attempt(f, default=None):
    try:
        return f()
    except Exception as e:
        return {"error": type(e).__name__} if default is None else default


def text_of(part):
    data = part.get_payload(decode=True) or b""
    charset = part.get_param("charset", "us-ascii")
    if isinstance(charset, tuple):
        charset = email.utils.collapse_rfc2231_value(charset)
    try:
        s = data.decode(charset, "replace")
    except LookupError:
        s = data.decode("utf-8", "replace")
    return s.replace("\r\n", "\n").replace("\r", "\n")


def leaves(part, aside=False):
    """Yields (part, whether it lies in a multipart/related outside its root)."""
    if part.get_content_maintype() != "multipart" or not part.is_multipart():
        yield part, aside
        return
    children = part.get_payload()
    related = part.get_content_type() == "multipart/related"
    root = 0
    if related:
        start = part.get_param("start")
        for i, c in enumerate(children):
            if start and str(c.get("content-id", "")).strip() == start.strip():
                root = i
    for i, c in enumerate(children):
        yield from leaves(c, aside or related and i != root)


def optional(msg, name):
    v = msg.get(name)
    return None if v is None else str(v)


def read(data):
    data = re.sub(rb"\r?\n", b"\r\n", data)
    Message.parsing = True
    msg = email.message_from_bytes(data, policy=POLICY)
    Message.parsing = False
    r = {"subject": attempt(lambda: optional(msg, "subject"), False)}
    for key, name in (("from", "from"), ("to", "to"), ("cc", "cc"), ("reply_to", "reply-to")):
        r[key] = attempt(lambda: addresses(msg, name))
    date = None
    try:
        d = msg["date"].datetime
        if d is not None:
            if d.tzinfo is None:
                d = d.replace(tzinfo=datetime.timezone.utc)
            date = d.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    except Exception:
        pass
    r["date"] = date
    mid = attempt(lambda: optional(msg, "message-id"), False)
    r["message_id"] = mid.strip().strip("<>") if mid else None
    texts, htmls, files, defects = [], [], [], []
    for i, (part, aside) in enumerate(leaves(msg)):
        ctype = part.get_content_type()
        if part.get_content_maintype() == "multipart":
            ctype = "text/plain"  # could not be taken apart
        disp = attempt(part.get_content_disposition, "")
        name = attempt(part.get_filename, "")
        if ctype in ("text/plain", "text/html") and disp != "attachment" and (not name or i == 0) and not aside:
            (texts if ctype == "text/plain" else htmls).append(text_of(part))
            continue
        body = part.get_payload(decode=True) or b""
        cid = attempt(lambda: optional(part, "content-id"), None)
        files.append({
            "filename": name or None,
            "content_type": ctype,
            "size": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "content_id": cid.strip().strip("<>") if cid else None,
            "inline": disp == "inline" or (bool(cid) and disp != "attachment"),
        })
    for part in msg.walk():  # after decoding, which finds some
        defects += [type(d).__name__ for d in part.defects]
    r["text"] = "\n".join(texts) if texts else None
    r["html"] = "\n".join(htmls) if htmls else None
    r["headers"] = [{"name": n, "value": attempt(lambda: value_of(n, v))} for n, v in msg.raw_items()]
    r["attachments"] = files
    r["defects"] = sorted(set(defects))
    return r


def clean(v):
    if isinstance(v, str):
        return v.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(v, list):
        return [clean(x) for x in v]
    if isinstance(v, dict):
        return {k: clean(x) for k, x in v.items()}
    return v


def dump(path):
    return json.dumps(clean(read(path.read_bytes())), indent=1, ensure_ascii=False) + "\n"


def main():
    if len(sys.argv) > 1:
        print(dump(pathlib.Path(sys.argv[1])), end="")
        return
    base, golden = HERE / "corpus", HERE / "golden"
    shutil.rmtree(golden, ignore_errors=True)
    for path in sorted(base.rglob("*.eml")):
        to = golden / path.relative_to(base).with_suffix(".json")
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(dump(path), encoding="utf-8")


main()
