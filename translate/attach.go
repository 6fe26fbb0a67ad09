package translate

import (
	"fmt"
	"slices"
	"strings"

	"smtpbridge/mime"
)

// fileTypes maps a media type to its usual file name extensions, the preferred first. It is our own table because
// the system's differs from machine to machine, and the same mail must give the same call.
var fileTypes = map[string][]string{
	"application/pdf":               {"pdf"},
	"application/zip":               {"zip"},
	"application/x-zip-compressed":  {"zip"},
	"application/gzip":              {"gz"},
	"application/json":              {"json"},
	"application/xml":               {"xml"},
	"application/rtf":               {"rtf"},
	"application/ics":               {"ics"},
	"application/msword":            {"doc"},
	"application/vnd.ms-excel":      {"xls"},
	"application/vnd.ms-powerpoint": {"ppt"},
	"application/vnd.openxmlformats-officedocument.wordprocessingml.document":   {"docx"},
	"application/vnd.openxmlformats-officedocument.spreadsheetml.sheet":         {"xlsx"},
	"application/vnd.openxmlformats-officedocument.presentationml.presentation": {"pptx"},
	"application/vnd.oasis.opendocument.text":                                   {"odt"},
	"application/vnd.oasis.opendocument.spreadsheet":                            {"ods"},
	"application/vnd.oasis.opendocument.presentation":                           {"odp"},
	"application/epub+zip":             {"epub"},
	"application/pgp-signature":        {"asc", "sig"},
	"application/pgp-keys":             {"asc"},
	"application/pgp-encrypted":        {"asc", "pgp"},
	"application/pkcs7-mime":           {"p7m"},
	"application/x-pkcs7-mime":         {"p7m"},
	"application/pkcs7-signature":      {"p7s"},
	"application/x-pkcs7-signature":    {"p7s"},
	"application/postscript":           {"ps", "eps", "ai"},
	"audio/mpeg":                       {"mp3"},
	"audio/mp4":                        {"m4a"},
	"audio/ogg":                        {"ogg"},
	"audio/flac":                       {"flac"},
	"audio/wav":                        {"wav"},
	"audio/x-wav":                      {"wav"},
	"image/bmp":                        {"bmp"},
	"image/gif":                        {"gif"},
	"image/jpeg":                       {"jpg", "jpeg", "jpe", "jfif"},
	"image/jpg":                        {"jpg", "jpeg"},
	"image/png":                        {"png"},
	"image/svg+xml":                    {"svg"},
	"image/tiff":                       {"tif", "tiff"},
	"image/webp":                       {"webp"},
	"image/vnd.adobe.photoshop":        {"psd"},
	"message/rfc822":                   {"eml"},
	"message/global":                   {"eml"},
	"message/delivery-status":          {"txt"},
	"message/disposition-notification": {"txt"},
	"message/feedback-report":          {"txt"},
	"text/rfc822-headers":              {"txt"},
	"text/calendar":                    {"ics", "ical"},
	"text/css":                         {"css"},
	"text/csv":                         {"csv"},
	"text/html":                        {"html", "htm"},
	"text/plain":                       {"txt", "text", "log"},
	"text/rtf":                         {"rtf"},
	"text/vcard":                       {"vcf"},
	"text/x-vcard":                     {"vcf"},
	"text/xml":                         {"xml"},
	"video/mp4":                        {"mp4", "m4v"},
	"video/mpeg":                       {"mpeg", "mpg"},
	"video/quicktime":                  {"mov"},
	"video/x-msvideo":                  {"avi"},
	"video/x-matroska":                 {"mkv"},
}

// extensions are the usual ones of a media type, the preferred first. A text of an unknown kind is plain text (RFC 2046 4.1.4).
func extensions(mediaType string) []string {
	if exts, ok := fileTypes[mediaType]; ok || !strings.HasPrefix(mediaType, "text/") {
		return exts
	}
	return []string{"txt"}
}

// attachments fits every attachment to what the API takes.
func (p *planner) attachments() error {
	c := &p.Caps
	taken := map[string]bool{}
	for i := range p.Message.Attachments {
		taken[p.Message.Attachments[i].Filename] = true
	}
	made := map[string]bool{}
	for i := range p.Message.Attachments {
		a := &p.Message.Attachments[i]
		out := Attachment{Attachment: a, Name: clean(a.Filename)}
		title := "attachment " + cut(out.Name, 80)
		if out.Name == "" {
			title = fmt.Sprintf("attachment %d", i+1)
		}
		if c.AttachContent && a.Size == 0 {
			p.lose(Major, title, "no content", "")
			continue
		}
		out.Inline = p.inline(a, title)

		name, err := c.fitName(a, out.Name, out.Inline)
		if err != nil {
			return err
		}
		if name != out.Name {
			// Two names that become the same stay apart.
			for base, n := name, 2; made[name] || taken[name]; n++ {
				stem, ext := splitExt(base)
				if name = fmt.Sprintf("%s-%d", stem, n); ext != "" {
					name += "." + ext
				}
			}
			sev := Major
			if out.Name == "" {
				sev = Info // it had none: nothing is missed
			}
			p.lose(sev, title, "name", name)
			out.Name = name
		}
		made[out.Name] = true
		if !c.AttachName && a.Filename != "" {
			p.lose(Major, title, "name", "")
		} else if c.AttachASCII && !isASCII([]byte(out.Name)) {
			p.lose(Major, title, "name", "garbled, as it is not ASCII")
		}
		if !c.AttachType && a.Type != "application/octet-stream" {
			if _, ext := splitExt(out.Name); !slices.Contains(fileTypes[a.Type], strings.ToLower(ext)) {
				p.lose(Major, title, "type "+cut(a.Type, 80), "")
			}
		}
		if cs := strings.ToLower(a.Params["charset"]); strings.HasPrefix(a.Type, "text/") && cs != "" && cs != "us-ascii" && cs != "utf-8" {
			p.lose(Minor, title, "charset "+cut(clean(cs), 40), "")
		}
		p.base.Attach = append(p.base.Attach, out)
	}
	return nil
}

// inline tells whether an inline part stays one.
func (p *planner) inline(a *mime.Attachment, title string) bool {
	c := &p.Caps
	switch {
	case !a.Inline:
		return false
	case a.ContentID == "":
		// Nothing in the mail refers to it; APIs know a part as inline by its Content-ID.
		p.lose(Info, title, "inline", "as attachment")
		return false
	case !c.Inline && !c.InlineImages, c.InlineImages && !strings.HasPrefix(a.Type, "image/"):
		p.lose(Major, title, "inline", "as attachment")
		return false
	}
	return true
}

// fitName gives the name under which the API takes the file.
func (c *Capabilities) fitName(a *mime.Attachment, name string, inline bool) (string, error) {
	if name == "" {
		if !c.AttachNeedName && c.AttachExts == nil {
			return "", nil
		}
		name = "attachment"
		switch {
		case inline:
			name = "inline"
		case a.Type == "message/rfc822":
			name = "message"
		case a.Type == "text/calendar":
			name = "invite"
		}
		if exts := extensions(a.Type); len(exts) > 0 {
			name += "." + exts[0]
		} else if c.AttachExts == nil {
			name += ".bin"
		}
	}
	if c.AttachExts == nil && !c.AttachOneDot {
		return name, nil
	}
	stem, ext := splitExt(name)
	if c.AttachExts != nil && !slices.Contains(c.AttachExts, strings.ToLower(ext)) {
		fit := ""
		for _, e := range extensions(a.Type) {
			if slices.Contains(c.AttachExts, e) {
				fit = e
				break
			}
		}
		if fit == "" {
			what := "without a known type"
			if ext != "" {
				what = "of type ." + cut(strings.ToLower(ext), 20)
			}
			return "", &RefusalError{Status: "5.6.1", Text: fmt.Sprintf(
				"the provider takes no attachment %s (%q, %s); send it in another format or as a link, or route this mail to another account",
				what, cut(name, 100), cut(a.Type, 80))}
		}
		switch {
		case ext == "" || slices.Contains(extensions(a.Type), strings.ToLower(ext)):
		default:
			// The old ending stays readable: virus.exe never turns into a plain virus.pdf.
			stem += "_" + ext
		}
		ext = fit
	}
	if c.AttachOneDot {
		stem = strings.ReplaceAll(stem, ".", "_")
	}
	if ext == "" {
		return stem, nil
	}
	return stem + "." + ext, nil
}

// splitExt cuts a file name at its last full stop. A name that starts with it has no stem.
func splitExt(name string) (stem, ext string) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 || i == len(name)-1 && i == 0 {
		return name, ""
	}
	return name[:i], name[i+1:]
}
