package archive

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"cairn/store"
)

// maxKeyName is the length limit of a key's name, in bytes.
const maxKeyName = 200

// maxKeyFile is the size limit of a file that holds one key.
const maxKeyFile = 4 << 10

// PublicKey is a name and the public half of a key. It is comparable; the zero value is no key.
type PublicKey struct {
	name string
	key  [ed25519.PublicKeySize]byte
}

// SecretKey is a name and a whole key. The zero value is no key.
type SecretKey struct {
	name string
	key  ed25519.PrivateKey
}

// GenerateKey makes a new key.
func GenerateKey(name string) (SecretKey, error) {
	if err := checkKeyName(name); err != nil {
		return SecretKey{}, err
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return SecretKey{}, fmt.Errorf("generate key %s: %w", name, err)
	}
	return SecretKey{name: name, key: key}, nil
}

// ParsePublicKey parses "name:base64 of 32 bytes".
func ParsePublicKey(s string) (PublicKey, error) {
	name, b, err := cutKey(s, ed25519.PublicKeySize)
	if err != nil {
		return PublicKey{}, fmt.Errorf("public key %q: %w", clip(s), err)
	}
	return PublicKey{name: name, key: [ed25519.PublicKeySize]byte(b)}, nil
}

// ParseSecretKey parses "name:base64 of 64 bytes". Errors do not show the text.
func ParseSecretKey(s string) (SecretKey, error) {
	name, b, err := cutKey(s, ed25519.PrivateKeySize)
	if err != nil {
		return SecretKey{}, fmt.Errorf("secret key: %w", err)
	}
	key := ed25519.NewKeyFromSeed(b[:ed25519.SeedSize])
	if string(key) != string(b) {
		return SecretKey{}, fmt.Errorf("secret key %s: its public half does not belong to it: %w", name, ErrKey)
	}
	return SecretKey{name: name, key: key}, nil
}

// cutKey splits "name:base64" and checks both.
func cutKey(s string, size int) (string, []byte, error) {
	name, text, ok := strings.Cut(s, ":")
	if !ok {
		return "", nil, fmt.Errorf("no ':' between name and key: %w", ErrKey)
	}
	if err := checkKeyName(name); err != nil {
		return "", nil, err
	}
	b, err := decodeBase64(text)
	if err != nil || len(b) != size {
		return "", nil, fmt.Errorf("%s is not followed by %d bytes in base 64: %w", name, size, ErrKey)
	}
	return name, b, nil
}

// decodeBase64 accepts one text for each value.
func decodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, ErrKey
	}
	return base64.StdEncoding.Strict().DecodeString(s)
}

func checkKeyName(name string) error {
	if name == "" || len(name) > maxKeyName {
		return fmt.Errorf("key name of %d bytes, allowed are 1 to %d: %w", len(name), maxKeyName, ErrKey)
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c > '~' || c == ':' || c == '#' || c == ',' {
			return fmt.Errorf("key name %q contains %q; allowed is printable ASCII without space : # ,: %w", clip(name), c, ErrKey)
		}
	}
	return nil
}

// Name returns the key's name.
func (k PublicKey) Name() string { return k.name }

// IsZero reports whether k is no key.
func (k PublicKey) IsZero() bool { return k.name == "" }

func (k PublicKey) String() string {
	if k.IsZero() {
		return ""
	}
	return k.name + ":" + base64.StdEncoding.EncodeToString(k.key[:])
}

// MarshalText gives the text form.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText parses the text form.
func (k *PublicKey) UnmarshalText(b []byte) error {
	p, err := ParsePublicKey(string(b))
	if err == nil {
		*k = p
	}
	return err
}

// Verify reports whether signature, "name:base64", is one of text by this key.
func (k PublicKey) Verify(text []byte, signature string) bool {
	name, b, err := cutKey(signature, ed25519.SignatureSize)
	return err == nil && !k.IsZero() && name == k.name && ed25519.Verify(k.key[:], text, b)
}

// VerifyInfo returns the first of keys that signed an object's description.
func VerifyInfo(info *store.Info, keys []PublicKey) (PublicKey, bool) {
	return VerifyText([]byte(info.Fingerprint()), info.Signatures, keys)
}

// VerifyRealisation returns the first of keys that signed a realisation.
func VerifyRealisation(r *store.Realisation, keys []PublicKey) (PublicKey, bool) {
	return VerifyText([]byte(r.Fingerprint()), r.Signatures, keys)
}

// VerifyText returns the first of keys that signed a text.
func VerifyText(text []byte, signatures []string, keys []PublicKey) (PublicKey, bool) {
	for _, k := range keys {
		for _, s := range signatures {
			if k.Verify(text, s) {
				return k, true
			}
		}
	}
	return PublicKey{}, false
}

// SignatureKey returns the name of the key that a signature says it is by. What is no signature is ErrKey.
func SignatureKey(signature string) (string, error) {
	name, _, err := cutKey(signature, ed25519.SignatureSize)
	if err != nil {
		return "", fmt.Errorf("signature %q: %w", clip(signature), err)
	}
	return name, nil
}

// Name returns the key's name.
func (k SecretKey) Name() string { return k.name }

// IsZero reports whether k is no key.
func (k SecretKey) IsZero() bool { return k.name == "" }

// Public returns the public half.
func (k SecretKey) Public() PublicKey {
	if k.IsZero() {
		return PublicKey{}
	}
	return PublicKey{name: k.name, key: [ed25519.PublicKeySize]byte(k.key[ed25519.SeedSize:])}
}

// Format prints the name only, whatever the verb.
func (k SecretKey) Format(f fmt.State, _ rune) { io.WriteString(f, k.name+":(secret)") }

// MarshalText refuses: a secret key goes to its file and nowhere else.
func (k SecretKey) MarshalText() ([]byte, error) {
	return nil, fmt.Errorf("secret key %s does not become text", k.name)
}

// Reveal returns the text form.
func (k SecretKey) Reveal() string { return k.name + ":" + base64.StdEncoding.EncodeToString(k.key) }

// Sign returns the signature of text, "name:base64".
func (k SecretKey) Sign(text []byte) string {
	return k.name + ":" + base64.StdEncoding.EncodeToString(ed25519.Sign(k.key, text))
}

// SignInfo returns the signature of an object's description.
func (k SecretKey) SignInfo(info *store.Info) string { return k.Sign([]byte(info.Fingerprint())) }

// SignRealisation returns the signature of a realisation.
func (k SecretKey) SignRealisation(r *store.Realisation) string {
	return k.Sign([]byte(r.Fingerprint()))
}

// WriteFile writes the key to a new file that only its owner can read.
func (k SecretKey) WriteFile(path string) error {
	if err := writeNew(path, k.Reveal()+"\n", 0o400); err != nil {
		return fmt.Errorf("write secret key: %w", err)
	}
	return nil
}

// WriteFile writes the key to a new file that everybody can read.
func (k PublicKey) WriteFile(path string) error {
	if err := writeNew(path, k.String()+"\n", 0o444); err != nil {
		return fmt.Errorf("write public key: %w", err)
	}
	return nil
}

// writeNew writes a file that must not exist, durably.
func writeNew(path, text string, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return syncParent(path)
}

// ReadSecretKey reads a secret key's file. It refuses one that others can read.
func ReadSecretKey(path string) (SecretKey, error) {
	text, mode, err := readKeyFile(path)
	if err != nil {
		return SecretKey{}, fmt.Errorf("read secret key: %w", err)
	}
	if mode&0o077 != 0 {
		return SecretKey{}, fmt.Errorf("read secret key: %s has mode %04o, so others can read it; chmod 0400 it", path, mode)
	}
	k, err := ParseSecretKey(text)
	if err != nil {
		return SecretKey{}, fmt.Errorf("read %s: %w", path, err)
	}
	return k, nil
}

// ReadExposedKey reads a secret key's file, and reports whether others can read it, too: Nix does not mind.
func ReadExposedKey(path string) (k SecretKey, exposed bool, err error) {
	text, mode, err := readKeyFile(path)
	if err != nil {
		return SecretKey{}, false, fmt.Errorf("read secret key: %w", err)
	}
	if k, err = ParseSecretKey(text); err != nil {
		return SecretKey{}, false, fmt.Errorf("read %s: %w", path, err)
	}
	return k, mode&0o077 != 0, nil
}

// ReadPublicKey reads a public key's file.
func ReadPublicKey(path string) (PublicKey, error) {
	text, _, err := readKeyFile(path)
	if err != nil {
		return PublicKey{}, fmt.Errorf("read public key: %w", err)
	}
	k, err := ParsePublicKey(text)
	if err != nil {
		return PublicKey{}, fmt.Errorf("read %s: %w", path, err)
	}
	return k, nil
}

func readKeyFile(path string) (string, fs.FileMode, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err == nil && len(b) > maxKeyFile {
		err = fmt.Errorf("%s has more than %d bytes: %w", path, maxKeyFile, ErrKey)
	}
	return strings.TrimSpace(string(b)), st.Mode().Perm(), err
}

func clip(s string) string {
	if len(s) > 120 {
		return s[:120] + "…"
	}
	return s
}
