package deploy

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"cairn/deploy/ssh"
)

// binaryDir is where machines keep the program, as cairn-<hash>, and as cairn the one that `init --daemon` installed last.
// It must be there before there is a store to put it in, and be found at boot whatever the store holds.
const binaryDir = "/cairn/bin"

// program is the binary that machines get. It is read once and packed once, whatever the number of machines.
type program struct {
	path   string
	hash   string // SHA-256 in base 16
	packed func() ([]byte, error)
}

func openProgram(path string) (*program, error) {
	if path == "" {
		path = "/proc/self/exe"
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read program: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, fmt.Errorf("read program: %w", err)
	}
	p := &program{path: path, hash: hex.EncodeToString(h.Sum(nil))}
	p.packed = sync.OnceValues(p.pack)
	return p, nil
}

// there is the program's name on a machine.
func (p *program) there() string { return binaryDir + "/cairn-" + p.hash[:32] }

func (p *program) pack() ([]byte, error) {
	f, err := os.Open(p.path)
	if err != nil {
		return nil, fmt.Errorf("read program: %w", err)
	}
	defer f.Close()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(z, f); err != nil {
		return nil, fmt.Errorf("pack program: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// asRoot runs its arguments as root.
const asRoot = `if [ "$(id -u)" = 0 ]; then exec "$@"; fi; exec sudo -n -- "$@"`

// receive puts what comes in, packed, at the name $2 if it has the hash $1; it keeps the last three.
const receive = `set -eu; umask 022; d=` + binaryDir + `; mkdir -p $d
find $d -name '.new-*' -mmin +60 -delete
t=$(mktemp $d/.new-XXXXXX); trap 'rm -f "$t"' EXIT; gzip -dc >"$t"
echo "$1  $t" | sha256sum -c --status || { echo "the program arrived damaged" >&2; exit 1; }
chmod 755 "$t"; sync "$t"; mv -f "$t" "$2"; sync $d
ls -1t $d/cairn-* | tail -n +4 | xargs -r rm -f`

// bring uploads the program, and has it set up what it needs: directories, keys, the daemon and its unit.
func (p *program) bring(ctx context.Context, conn *ssh.Conn, machine string) error {
	if err := checkMachine(machine); err != nil {
		return err
	}
	packed, err := p.packed()
	if err != nil {
		return err
	}
	err = conn.Run(ctx, ssh.Command{Argv: []string{"sh", "-c", asRoot, "sh", "sh", "-c", receive, "sh", p.hash, p.there()}, Stdin: bytes.NewReader(packed)})
	if err != nil {
		return fmt.Errorf("bring the program: %w", rootError(conn, err))
	}
	return p.initDaemon(ctx, conn)
}

// initDaemon has the program set up the machine; it changes nothing that is right already.
func (p *program) initDaemon(ctx context.Context, conn *ssh.Conn) error {
	err := conn.Run(ctx, ssh.Command{Argv: []string{"sh", "-c", asRoot, "sh", p.there(), "init", "--daemon"}})
	if err != nil {
		return fmt.Errorf("set up the daemon: %w", rootError(conn, err))
	}
	return nil
}

func rootError(conn *ssh.Conn, err error) error {
	if exit, ok := errors.AsType[*ssh.ExitError](err); ok {
		return sudoError(conn.Target().User, exit)
	}
	return err
}

// checkMachine compares what uname says there with what this program runs on.
func checkMachine(machine string) error {
	want, known := map[string]string{"amd64": "Linux x86_64", "arm64": "Linux aarch64"}[runtime.GOARCH]
	if known && machine != want {
		return hinted(fmt.Errorf("%w: it is %q, this cairn runs on %q", ErrArchitecture, machine, want), "deploy from a machine of its kind, or with a cairn built for it")
	}
	return nil
}
