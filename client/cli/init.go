package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"cairn/archive"
	"cairn/store/disk"
)

type initOptions struct {
	daemon    bool
	nixCompat bool
	key       string
}

func newInitCmd(env *Env) *cobra.Command {
	o := &initOptions{}
	cmd := &cobra.Command{
		Use:     "init [--daemon [--nix-compat]]",
		GroupID: "service",
		Short:   "Make the directories, the signing key and the access list of a store",
		Long: `Make what a store needs: its directories, a key pair that signs what is exported
(the secret half readable by its owner alone), and an access list that allows this
key to import. What is there already stays, so that running it again is safe.

With --daemon, as root on a machine with systemd, the binary is also installed as
/cairn/bin/cairn, and cairn-daemon.service is installed and started. With --nix-compat,
links named nix-daemon and nix-store lead to it, unless Nix itself is installed: Nix's
clients on other machines (nix copy, nix-copy-closure, remote builds) then reach this
one over ssh without a setting.`,
		Example: `  cairn init --root ~/try
  cairn init --daemon --nix-compat`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runInit(cmd.Context(), env, o) },
	}
	cmd.Flags().BoolVar(&o.daemon, "daemon", false, "install and start the daemon as a service")
	cmd.Flags().BoolVar(&o.nixCompat, "nix-compat", false, "with --daemon: be nix-daemon and nix-store to Nix's clients on other machines")
	cmd.Flags().StringVar(&o.key, "key-name", "", "`NAME` of a new key; default: the host's name and -1")
	return cmd
}

func runInit(ctx context.Context, env *Env, o *initOptions) error {
	if o.daemon && env.Root != "" {
		return &usageError{errors.New("--daemon is for the machine itself, not for --root; run 'cairn daemon --root DIR' there")}
	}
	if o.nixCompat && !o.daemon {
		return &usageError{errors.New("--nix-compat goes with --daemon")}
	}
	layout, err := env.layout()
	if err != nil {
		return err
	}
	if err := disk.Init(layout); err != nil {
		return permissionHint(err)
	}
	env.printf("store: %s\n", layout.RealDir)
	if err := initKey(env, layout, o.key); err != nil {
		return permissionHint(err)
	}
	if !o.daemon {
		return nil
	}
	if err := installServices(ctx, env, layout); err != nil || !o.nixCompat {
		return err
	}
	return permissionHint(installNixNames(env, filepath.Dir(linkedBinary), installedBinary))
}

// permissionHint says what to do where the machine's own store needs root.
func permissionHint(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return hinted(err, "the machine's own store needs root; --root DIR makes one that does not")
	}
	return err
}

// initKey makes a key pair unless there is one, and lets it import.
func initKey(env *Env, layout disk.Layout, name string) error {
	secret := secretKeyFile(layout)
	switch _, err := os.Lstat(secret); {
	case err == nil:
		env.printf("signing key: %s (kept)\n", secret)
	case errors.Is(err, fs.ErrNotExist):
		if err := generateKey(env, layout, name); err != nil {
			return err
		}
	default:
		return err
	}
	key, err := archive.ReadPublicKey(publicKeyFile(layout))
	if err != nil {
		return err
	}
	_, err = archive.Authorize(aclFile(layout), key, archive.Import)
	return err
}

func secretKeyFile(l disk.Layout) string { return filepath.Join(l.ConfDir, "signing-key.sec") }
func publicKeyFile(l disk.Layout) string { return filepath.Join(l.ConfDir, "signing-key.pub") }
func aclFile(l disk.Layout) string       { return filepath.Join(l.ConfDir, "acl") }

// generateKey makes the key pair of a store. Neither file may exist.
func generateKey(env *Env, layout disk.Layout, name string) error {
	if name == "" {
		host, err := os.Hostname()
		if err != nil || host == "" {
			host = "localhost"
		}
		name = host + "-1"
	}
	for _, f := range []string{secretKeyFile(layout), publicKeyFile(layout)} {
		if _, err := os.Lstat(f); err == nil {
			return hinted(fmt.Errorf("generate key: %s exists", f), "move both key files away first; others know this machine by them")
		}
	}
	key, err := archive.GenerateKey(name)
	if err == nil {
		err = key.WriteFile(secretKeyFile(layout))
	}
	if err == nil {
		err = key.Public().WriteFile(publicKeyFile(layout))
	}
	if err != nil {
		return fmt.Errorf("generate key: %w", err)
	}
	env.printf("signing key: %s (new)\n", secretKeyFile(layout))
	return nil
}
