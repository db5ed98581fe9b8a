package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// Errors that callers test for with errors.Is.
var (
	// ErrUnknown says that there is no setting of a name.
	ErrUnknown = errors.New("unknown setting")
	// ErrSyntax says that a line is not of the syntax.
	ErrSyntax = errors.New("illegal configuration line")
)

// maxIncludes is how deep files may include each other.
const maxIncludes = 20

// Files returns the settings files there may be, in the order in which they are read. A missing one is no error.
func Files(confDir string, getenv func(string) string) []string {
	files := []string{filepath.Join(confDir, "nix.conf")}
	if list := getenv("NIX_USER_CONF_FILES"); list != "" {
		user := strings.Split(list, ":")
		slices.Reverse(user) // the first one wins
		return append(files, user...)
	}
	dirs := strings.Split(getenv("XDG_CONFIG_DIRS"), ":")
	slices.Reverse(dirs)
	home := getenv("XDG_CONFIG_HOME")
	if home == "" && getenv("HOME") != "" {
		home = filepath.Join(getenv("HOME"), ".config")
	}
	for _, d := range append(dirs, home) {
		if d != "" {
			files = append(files, filepath.Join(d, "nix", "nix.conf"))
		}
	}
	return files
}

// Origins says where values come from, by the setting's name: "FILE:LINE", or what Explain was told. What is not in it is a default.
type Origins map[string]string

// Explain is Load, and says where each value comes from. A list to which several lines add comes from the last.
func Explain(confDir string, getenv func(string) string, read func(string) ([]byte, error), warn func(string)) (*Settings, Origins, error) {
	from := Origins{}
	s := Defaults()
	s.origins = from
	if err := s.load(confDir, getenv, read, warn); err != nil {
		return nil, nil, err
	}
	s.origins = nil
	return s, from, nil
}

// Load returns the defaults with what the files and NIX_CONFIG say. warn is told of settings that are not known.
func Load(confDir string, getenv func(string) string, read func(string) ([]byte, error), warn func(string)) (*Settings, error) {
	s := Defaults()
	if err := s.load(confDir, getenv, read, warn); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Settings) load(confDir string, getenv func(string) string, read func(string) ([]byte, error), warn func(string)) error {
	s.Builders = "@" + filepath.Join(confDir, "machines")
	for _, f := range Files(confDir, getenv) {
		text, err := read(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read settings: %w", err)
		}
		if err := s.Apply(f, string(text), read, warn); err != nil {
			return err
		}
	}
	return s.Apply("NIX_CONFIG", getenv("NIX_CONFIG"), read, warn)
}

// Apply sets what the text of a file says. read is for the files that it includes; errors name file and line.
func (s *Settings) Apply(file, text string, read func(string) ([]byte, error), warn func(string)) error {
	return s.apply(file, text, read, warn, 0)
}

func (s *Settings) apply(file, text string, read func(string) ([]byte, error), warn func(string), depth int) error {
	if depth > maxIncludes {
		return fmt.Errorf("%s: files include each other more than %d deep", file, maxIncludes)
	}
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		err := s.line(file, words, read, warn, depth)
		if errors.Is(err, ErrUnknown) {
			if !isForeign(words[0]) {
				warn(fmt.Sprintf("%s:%d: %v", file, i+1, err))
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("%s:%d: %w", file, i+1, err)
		}
		s.note(words[0], fmt.Sprintf("%s:%d", file, i+1))
	}
	return nil
}

// note remembers where a setting was set, if somebody wants to know.
func (s *Settings) note(name, origin string) {
	if setting, _ := Find(name); setting != nil && s.origins != nil {
		s.origins[setting.Name] = origin
	}
}

func (s *Settings) line(file string, words []string, read func(string) ([]byte, error), warn func(string), depth int) error {
	if words[0] == "include" || words[0] == "!include" {
		if len(words) != 2 {
			return fmt.Errorf("%w '%s': %s takes one file", ErrSyntax, strings.Join(words, " "), words[0])
		}
		name := words[1]
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(file), name)
		}
		text, err := read(name)
		if errors.Is(err, fs.ErrNotExist) && words[0] == "!include" {
			return nil
		}
		if err != nil {
			return fmt.Errorf("include: %w", err)
		}
		return s.apply(name, string(text), read, warn, depth+1)
	}
	if len(words) < 2 || words[1] != "=" {
		return fmt.Errorf("%w '%s': it is not 'name = value'", ErrSyntax, strings.Join(words, " "))
	}
	return s.Set(words[0], strings.Join(words[2:], " "))
}
