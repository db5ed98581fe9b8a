package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"cairn/store/disk"
	"cairn/store/meta"
)

type storeRebuildOptions struct {
	backup              string
	dryRun, force, json bool
}

func newStoreRebuildCmd(env *Env) *cobra.Command {
	o := &storeRebuildOptions{}
	cmd := &cobra.Command{
		Use:   "rebuild [--dry-run] [--backup FILE] [--json]",
		Short: "Remake a lost or damaged database from the store and the last backup",
		Long: `Remake the database when it is lost or damaged: from the newest of the backups that
the daemon makes (settings backup-interval and backup-keep), and from the objects
themselves. The daemon must not run.

Every object is read. Those that are as the backup says are registered as they were,
signatures included. Those that came later are registered when their contents prove
their path: derivations, sources, fixed and content-addressed outputs. An object with
wrong files keeps its row, so that 'cairn store repair' can mend it. The others'
files are moved to .lost in the store directory, and it is said how to get them
again; nothing is deleted, the old database neither. With a better backup a later
--force run takes back what is in .lost.

The exit code is 1 if anything is not as it was.`,
		Example: `  cairn store rebuild --dry-run
  cairn store rebuild --root ~/try --backup /backup/00000000000000000042.backup`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runStoreRebuild(cmd.Context(), env, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.backup, "backup", "", "take what is known of objects from `FILE` instead of the newest backup")
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "only say what would come of it")
	f.BoolVar(&o.force, "force", false, "replace a database that is whole")
	f.BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func runStoreRebuild(ctx context.Context, env *Env, o *storeRebuildOptions) error {
	layout, err := env.layout()
	if err != nil {
		return err
	}
	opts := &disk.RebuildOptions{DryRun: o.dryRun, Force: o.force, Logger: slog.New(slog.NewTextHandler(env.Stderr, nil))}
	if o.backup != "" {
		opts.Backup = env.path(o.backup)
	}
	p := env.newProgress(o.json)
	opts.Progress = func(done, total int) { p.total("%d of %s read", done, count(total, "object")) }
	r, err := disk.Rebuild(ctx, layout, opts)
	p.close()
	switch {
	case errors.Is(err, disk.ErrInUse):
		return hinted(err, "stop the daemon first: systemctl stop cairn-daemon.service cairn-daemon.socket")
	case errors.Is(err, disk.ErrWhole):
		return hinted(err, "'cairn store verify' looks for other damages; --force rebuilds all the same")
	case err != nil:
		return err
	}
	if o.json {
		err = env.printJSON(r)
	} else {
		printRebuilt(env, o, r)
	}
	if left := len(r.Damaged) + len(r.Lost); err == nil && left > 0 {
		err = fmt.Errorf("%w: %s not as they were", errCorrupt, count(left, "object"))
	}
	return err
}

func printRebuilt(env *Env, o *storeRebuildOptions, r *disk.RebuildResult) {
	for _, l := range r.Damaged {
		env.printf("%s is registered, but %s\n  to get it: %s\n", l.Path, stripEscapes(l.Why), l.How)
	}
	for _, l := range r.Lost {
		env.printf("%s is not registered: %s\n  to get it: %s\n", l.Path, stripEscapes(l.Why), l.How)
	}
	for _, name := range r.BadBackups {
		env.note("backup %s is damaged and was not used", name)
	}
	if r.Backup == "" {
		env.note("there is no backup")
	} else {
		env.note("backup %s of %s", r.Backup, r.BackupTime.Format("2006-01-02 15:04:05"))
	}
	verb := "has"
	if o.dryRun {
		verb = "would have"
	}
	env.note("the new database %s %s as in the backup, %d whose contents prove them, %d to repair; %d lost, %d of the backup deleted since",
		verb, count(r.Restored, "object"), r.Proven, len(r.Damaged), len(r.Lost), r.Deleted)
	if r.Aside != "" {
		env.note("files of the others are in %s", r.Aside)
	}
	if r.OldDatabase != "" {
		env.note("the old database is %s; delete it when all is well", r.OldDatabase)
	}
}

// isDatabaseLost finds a store that needs rebuilding.
func isDatabaseLost(err error) bool {
	return errors.Is(err, disk.ErrNoDatabase) || errors.Is(err, meta.ErrDamaged)
}
