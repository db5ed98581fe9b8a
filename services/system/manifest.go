package system

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// ManifestVersion is the version that this package writes and reads.
const ManifestVersion = 1

// MaxManifest bounds the size of services.json.
const MaxManifest = 16 << 20

// Manifest is services.json of a built system: the spec with real paths.
type Manifest struct {
	Version int `json:"version"`
	Spec
}

// JSON returns the bytes of services.json.
func (m *Manifest) JSON() []byte { return encode(m) }

// ParseManifest decodes and checks services.json.
func ParseManifest(data []byte) (*Manifest, error) {
	if len(data) > MaxManifest {
		return nil, fmt.Errorf("parse system manifest: %d bytes, the limit is %d", len(data), MaxManifest)
	}
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("parse system manifest: %w", err)
	}
	if head.Version != ManifestVersion {
		return nil, fmt.Errorf("parse system manifest: version %d, this program knows %d", head.Version, ManifestVersion)
	}
	m := new(Manifest)
	if err := decode(data, m); err != nil {
		return nil, fmt.Errorf("parse system manifest: %w", err)
	}
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("parse system manifest: %w", err)
	}
	return m, nil
}

// ReadManifest reads the manifest of the system object whose files are at dir.
func ReadManifest(dir string) (*Manifest, error) {
	f, err := os.OpenFile(filepath.Join(dir, "services.json"), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("read system manifest: %w", err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("read system manifest: %s is not a regular file", f.Name())
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("read system manifest: %w", err)
	}
	m, err := ParseManifest(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return m, nil
}

// Unit returns the unit called name, or nil.
func (s *Spec) Unit(name string) *Unit {
	for i := range s.Units {
		if s.Units[i].Name == name {
			return &s.Units[i]
		}
	}
	return nil
}

// User returns the user called name, or nil.
func (s *Spec) User(name string) *User {
	for i := range s.Users {
		if s.Users[i].Name == name {
			return &s.Users[i]
		}
	}
	return nil
}

// Definition is the SHA-256 of what makes a unit's process what it is:
// its text and what must restart it.
func (u *Unit) Definition() string { return digest(append([]string{u.Text}, u.RestartTriggers...)) }

// Reloads is the SHA-256 of what the unit must only reload.
func (u *Unit) Reloads() string { return digest(u.ReloadTriggers) }

func digest(parts []string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// UnmarshalJSON decodes a unit; an absent "start" is true.
func (u *Unit) UnmarshalJSON(data []byte) error {
	type plain Unit
	p := plain{Start: true}
	if err := decode(data, &p); err != nil {
		return err
	}
	*u = Unit(p)
	return nil
}

func decode(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("data after the end of the value")
	}
	return nil
}

func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(v); err != nil {
		panic("BUG: " + err.Error())
	}
	return b.Bytes()
}
