package eval

import (
	"net/url"
	"path"
	"slices"

	"go.starlark.net/starlark"

	"cairn/derivation"
	"cairn/store"
)

var fetchSchema = NewSchema("fetch", "A file from the network, known by its hash.", []Field{
	{Name: "url", Type: strType, Positional: true, Doc: "Where it is: http, https or file."},
	{Name: "hash", Type: strType, Positional: true, Doc: "What it must be, such as sha256-…"},
	{Name: "name", Type: strType, Default: starlark.String(""), Doc: "The object's name; default: the last part of the URL."},
	{Name: "executable", Type: boolType, Default: starlark.False, Doc: "Whether the file may be run; the hash is then that of the archive."},
})

func fetch(t *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
	e, where, name := of(t), string(a[0].(starlark.String)), string(a[2].(starlark.String))
	u, err := url.Parse(where)
	if err != nil || !slices.Contains([]string{"http", "https", "file"}, u.Scheme) {
		return nil, &argError{call: "fetch", keyword: "url", slot: 1, message: "want a URL with http, https or file"}
	}
	hash, err := store.ParseHash(string(a[1].(starlark.String)), 0)
	if err != nil {
		return nil, &argError{call: "fetch", keyword: "hash", slot: 2, message: err.Error()}
	}
	if name == "" {
		name = path.Base(u.Path)
	}
	out := derivation.Output{Method: store.Flat, Algo: hash.Algorithm(), Hash: hash}
	env := map[string]string{"url": where}
	if a[3] == starlark.True {
		out.Method, env["executable"] = store.Recursive, "1"
	}
	return e.object("fetch", name, UserPlace(t), func() (*ref, error) {
		refs, err := e.derive(&derivation.Derivation{
			Name: name, System: "builtin", Builder: "builtin:fetchurl", Env: env, Outputs: map[string]derivation.Output{"out": out},
		})
		return refs["out"], err
	})
}
