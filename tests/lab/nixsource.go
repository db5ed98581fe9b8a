package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// nixSuite is the release whose nix the tests of NixSource are for: 2.8.
const nixSuite = "bookworm"

// NixSource returns the source of the nix that Debian 12 has, for its functional tests, fetching it if it is not cached: about 2 seconds
// and 15 MB. It is the source as upstream published it. Nothing of it becomes part of this project.
func NixSource(ctx context.Context, log io.Writer) (string, error) {
	return cached("nix-source", "1\n"+nixSuite, func(tmp string) error {
		if log != nil {
			fmt.Fprintf(log, "lab: fetching the source of %s's nix into %s, once\n", nixSuite, CacheDir())
		}
		dir, err := os.MkdirTemp("", "nix-source")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		sources, err := fetchIndex(ctx, dir, nixSuite, "main/source/Sources.xz")
		if err != nil {
			return err
		}
		source, err := upstreamSource(sources, "nix")
		if err != nil {
			return err
		}
		packed := filepath.Join(dir, "source.tar.xz")
		if err := source.fetch(ctx, packed); err != nil {
			return err
		}
		if err := os.MkdirAll(tmp, 0o755); err != nil {
			return err
		}
		return run(ctx, "tar", "-xJf", packed, "-C", tmp, "--strip-components=1", "--no-same-owner")
	})
}

// upstreamSource finds the archive that upstream published in an index of source packages.
func upstreamSource(index, name string) (sourcePackage, error) {
	for stanza := range strings.SplitSeq(index, "\n\n") {
		if !strings.HasPrefix(stanza, "Package: "+name+"\n") {
			continue
		}
		dir := regexp.MustCompile(`(?m)^Directory: (\S+)$`).FindStringSubmatch(stanza)
		file := regexp.MustCompile(`(?m)^ ([0-9a-f]{64}) [0-9]+ (\S+\.orig\.tar\.xz)$`).FindStringSubmatch(stanza)
		if dir != nil && file != nil {
			return sourcePackage{dir[1] + "/" + file[2], file[1]}, nil
		}
	}
	return sourcePackage{}, fmt.Errorf("no source package %s with an upstream archive", name)
}
