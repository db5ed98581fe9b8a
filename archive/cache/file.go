package cache

import (
	"context"
	"fmt"
	"io"
	"net/url"
)

// File opens a file of the web that belongs to no cache, with the patience and the credentials of one. The bytes come as
// the server has them, and a download that breaks goes on where it was. A file that is not there is store.ErrNotValid,
// a server that does not answer ErrUnavailable.
func File(ctx context.Context, uri string, opts *Options) (io.ReadCloser, error) {
	opts = opts.withDefaults()
	u, err := url.Parse(uri)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%s: not the URL of a file on the web: %w", hide(uri), ErrFormat)
	}
	u.Fragment = ""
	w, err := newWeb((&url.URL{Scheme: u.Scheme, User: u.User, Host: u.Host}).String(), opts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", hide(uri), err)
	}
	u.User = nil
	b := &body{web: w, ctx: ctx, url: u}
	if err := b.open(); err != nil {
		w.close()
		return nil, err
	}
	return &file{body: b}, nil
}

// file is a body that owns its connections.
type file struct{ *body }

func (f *file) Close() error {
	defer f.web.close()
	return f.body.Close()
}
