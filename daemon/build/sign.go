package build

import (
	"fmt"

	"cairn/archive"
)

// signingKeys reads the keys that sign what is built: the setting secret-key-files.
func (b *Builder) signingKeys() ([]archive.SecretKey, error) {
	var keys []archive.SecretKey
	for _, file := range b.settings.SecretKeyFiles {
		k, exposed, err := archive.ReadExposedKey(file)
		if err != nil {
			return nil, fmt.Errorf("setting 'secret-key-files': %w", err)
		}
		if exposed {
			b.opts.Logger.Warn("a secret key can be read by others; chmod 0400 it", "file", file)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// signAll returns the signatures of a text by all keys.
func signAll(keys []archive.SecretKey, text string) []string {
	var list []string
	for _, k := range keys {
		list = append(list, k.Sign([]byte(text)))
	}
	return list
}
