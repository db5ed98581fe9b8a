package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// sourcePackage is what the index of a Debian release says of a package with somebody's source.
type sourcePackage struct {
	file   string // below the mirror
	sha256 string
}

// fetchSource brings the source package into dir.
func fetchSource(ctx context.Context, dir string) (string, error) {
	const index = "main/binary-amd64/Packages.xz"
	packages, err := fetchIndex(ctx, dir, kernelSuite, index)
	if err != nil {
		return "", err
	}
	source, err := newestSource(packages)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", index, err)
	}
	deb := filepath.Join(dir, "source.deb")
	return deb, source.fetch(ctx, deb)
}

// fetchIndex returns an index of a Debian release, unpacked. Every file is checked: the release by the archive's key, the index by
// the release, and a package by the index.
func fetchIndex(ctx context.Context, dir, suite, index string) (string, error) {
	mirror, err := Mirror("/etc/apt")
	if err != nil {
		return "", err
	}
	dist := mirror + "/dists/" + suite
	signed := filepath.Join(dir, "InRelease")
	if _, err := fetch(ctx, dist+"/InRelease", signed); err != nil {
		return "", err
	}
	release, err := verified(ctx, signed)
	if err != nil {
		return "", fmt.Errorf("check %s/InRelease: %w", dist, err)
	}
	want := regexp.MustCompile(`(?m)^ ([0-9a-f]{64}) +[0-9]+ ` + regexp.QuoteMeta(index) + `$`).FindSubmatch(release)
	if want == nil {
		return "", fmt.Errorf("%s/InRelease does not list %s", dist, index)
	}
	packed := filepath.Join(dir, "index.xz")
	if err := fetchChecked(ctx, dist+"/"+index, packed, string(want[1])); err != nil {
		return "", err
	}
	text, err := exec.CommandContext(ctx, "xz", "-dc", packed).Output()
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", packed, err)
	}
	return string(text), nil
}

// fetch brings a package into a file.
func (p sourcePackage) fetch(ctx context.Context, path string) error {
	mirror, err := Mirror("/etc/apt")
	if err != nil {
		return err
	}
	return fetchChecked(ctx, mirror+"/"+p.file, path, p.sha256)
}

// verified returns what Debian's archive key signed in a file.
func verified(ctx context.Context, file string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "gpgv", "--quiet", "--keyring", kernelKeyring, "--output", "-", file)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("gpgv with %s: %v: %s", kernelKeyring, err, said.String())
	}
	return out, nil
}

var sourceName = regexp.MustCompile(`^linux-source-([0-9]+)\.([0-9]+)$`)

// newestSource picks the linux-source package with the highest version in its name.
func newestSource(packages string) (sourcePackage, error) {
	var newest sourcePackage
	highest := -1
	for stanza := range strings.SplitSeq(packages, "\n\n") {
		if !strings.HasPrefix(stanza, "Package: linux-source-") {
			continue
		}
		fields := map[string]string{}
		for line := range strings.Lines(stanza) {
			k, v, _ := strings.Cut(line, ":")
			fields[k] = strings.TrimSpace(v)
		}
		m := sourceName.FindStringSubmatch(fields["Package"])
		if m == nil {
			continue
		}
		major, _ := strconv.Atoi(m[1])
		minor, _ := strconv.Atoi(m[2])
		if v := major*1000 + minor; v > highest {
			highest, newest = v, sourcePackage{fields["Filename"], fields["SHA256"]}
		}
	}
	if newest.file == "" || newest.sha256 == "" {
		return newest, errors.New("no package linux-source-N.N")
	}
	return newest, nil
}

func fetchChecked(ctx context.Context, url, path, want string) error {
	got, err := fetch(ctx, url, path)
	if err == nil && got != want {
		err = fmt.Errorf("fetch %s: its SHA-256 is %s, want %s", url, got, want)
	}
	return err
}

// fetch writes what url gives to path and returns its SHA-256.
func fetch(ctx context.Context, url, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("fetch %s: %s", url, resp.Status)
	}
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, sum), resp.Body)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("fetch %s: %w", url, err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), nil
}
