#!/usr/bin/env python3
"""An independent reading of the test mails, by Python's email package (policy.default).

    python3 testdata/oracle.py            rewrites testdata/oracle.json
    python3 testdata/oracle.py MAIL.eml   prints one reading in full

The source is first brought to CRLF line ends, as it would arrive by SMTP. The sizes and
digests of message/* parts are left out (null): the package takes those apart and cannot give back the octets.
"""
import datetime, email, email.policy, email.utils, hashlib, json, pathlib, re, sys

HERE = pathlib.Path(__file__).parent


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
    root = 0
    if part.get_content_type() == "multipart/related":
        start = part.get_param("start")
        for i, c in enumerate(children):
            if start and str(c.get("content-id", "")).strip() == start.strip():
                root = i
    for i, c in enumerate(children):
        down = aside or (part.get_content_type() == "multipart/related" and i != root)
        yield from leaves(c, down)


def optional(msg, name):
    v = msg.get(name)
    return None if v is None else str(v)


def read(data):
    data = re.sub(rb"\r?\n", b"\r\n", data)
    msg = email.message_from_bytes(data, policy=email.policy.default)
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
    texts, htmls, files = [], [], []
    for i, (part, aside) in enumerate(leaves(msg)):
        ctype = part.get_content_type()
        if part.get_content_maintype() == "multipart":
            ctype = "text/plain"  # could not be taken apart
        disp = attempt(part.get_content_disposition, "")
        name = attempt(part.get_filename, "")
        if ctype in ("text/plain", "text/html") and disp != "attachment" and (not name or i == 0) and not aside:
            (texts if ctype == "text/plain" else htmls).append(text_of(part))
            continue
        body = None if part.get_content_maintype() == "message" else part.get_payload(decode=True)
        cid = attempt(lambda: optional(part, "content-id"), None)
        files.append({
            "filename": name or None,
            "content_type": ctype,
            "size": None if body is None else len(body),
            "sha256": None if body is None else hashlib.sha256(body).hexdigest(),
            "content_id": cid.strip().strip("<>") if cid else None,
            "inline": disp == "inline" or (bool(cid) and disp != "attachment"),
        })
    r["text"] = "\n".join(texts) if texts else None
    r["html"] = "\n".join(htmls) if htmls else None
    r["attachments"] = files
    return r


def clean(v):
    if isinstance(v, str):
        return v.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(v, list):
        return [clean(x) for x in v]
    if isinstance(v, dict):
        return {k: clean(x) for k, x in v.items()}
    return v


def main():
    if len(sys.argv) > 1:
        print(json.dumps(clean(read(pathlib.Path(sys.argv[1]).read_bytes())), indent=2, ensure_ascii=False))
        return
    out = {}
    base = HERE / "corpus"
    for path in sorted(base.rglob("*.eml")):
        r = clean(read(path.read_bytes()))
        for key in ("text", "html"):
            if r[key] is not None:
                b = r[key].encode()
                r[key] = {"size": len(b), "sha256": hashlib.sha256(b).hexdigest()}
        out[str(path.relative_to(base))] = r
    (HERE / "oracle.json").write_text(json.dumps(out, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


main()
