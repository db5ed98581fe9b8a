package cache

import (
	"bytes"
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
)

// parts is how S3 takes large files: an upload is begun, parts are put, each with retries of its own, and the upload is
// completed, after which the file is there. S3 takes at most 5 GiB in one piece, and 10,000 parts of at least 5 MiB.
type parts struct{ above, size int64 }

const (
	defaultPartsAbove = 256 << 20
	defaultPartSize   = 64 << 20
	maxParts          = 10_000
	partsAtATime      = 4
)

func newParts(p *Parameters) *parts {
	return &parts{above: cmp.Or(p.PartsAbove, defaultPartsAbove), size: cmp.Or(p.PartSize, defaultPartSize)}
}

// part is one that was put.
type part struct {
	Number int    `xml:"PartNumber"`
	Tag    string `xml:"ETag"`
}

// nothing is empty content.
var nothing = io.NewSectionReader(bytes.NewReader(nil), 0, 0)

func (p *parts) put(ctx context.Context, w *web, u *url.URL, head http.Header, content *io.SectionReader) error {
	r, err := w.exchange(ctx, http.MethodPost, withQuery(u, url.Values{"uploads": {""}}), head, nothing)
	if err != nil {
		return err
	}
	var begun struct{ UploadId string }
	if err := xml.Unmarshal(r.text, &begun); err != nil || begun.UploadId == "" {
		return fmt.Errorf("%s: begin an upload in parts: %w", hideURL(u), ErrFormat)
	}
	id := url.Values{"uploadId": {begun.UploadId}}
	done, err := p.putAll(ctx, w, u, id, content)
	if err == nil {
		err = complete(ctx, w, u, id, done)
	}
	if err != nil {
		short, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_, gone := w.exchange(short, http.MethodDelete, withQuery(u, id), nil, nothing)
		return errors.Join(err, gone)
	}
	return nil
}

func (p *parts) putAll(ctx context.Context, w *web, u *url.URL, id url.Values, content *io.SectionReader) ([]part, error) {
	size := max(p.size, content.Size()/maxParts+1)
	count := int((content.Size() + size - 1) / size)
	done := make([]part, count)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(partsAtATime)
	for i := range count {
		group.Go(func() error {
			from := int64(i) * size
			query := url.Values{"uploadId": id["uploadId"], "partNumber": {strconv.Itoa(i + 1)}}
			r, err := w.exchange(ctx, http.MethodPut, withQuery(u, query), nil, io.NewSectionReader(content, from, min(size, content.Size()-from)))
			if err != nil {
				return err
			}
			done[i] = part{i + 1, r.head.Get("ETag")}
			return nil
		})
	}
	return done, group.Wait()
}

// complete makes the file of its parts. The answer may be 200 and yet an error.
func complete(ctx context.Context, w *web, u *url.URL, id url.Values, done []part) error {
	text, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"CompleteMultipartUpload"`
		Parts   []part   `xml:"Part"`
	}{Parts: done})
	if err != nil {
		return err
	}
	r, err := w.exchange(ctx, http.MethodPost, withQuery(u, id), nil, io.NewSectionReader(bytes.NewReader(text), 0, int64(len(text))))
	if err != nil {
		return err
	}
	var result struct {
		XMLName xml.Name
		Code    string
	}
	if err := xml.Unmarshal(r.text, &result); err != nil || result.XMLName.Local != "CompleteMultipartUploadResult" {
		return fmt.Errorf("%s: complete an upload in parts: %w: %s", hideURL(u), ErrUnavailable, clip(result.Code))
	}
	return nil
}

func withQuery(u *url.URL, values url.Values) *url.URL {
	with := *u
	with.RawQuery = values.Encode()
	return &with
}
