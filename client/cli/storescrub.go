package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"cairn/daemon/protocol"
)

func newStoreScrubCmd(env *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "scrub",
		Short: "Read all objects in the background, and say which are damaged",
		Long: `Read all objects in the background, one at a time and not faster than the setting
scrub-rate, and remember which are damaged. The daemon begins by itself when the last
one ended scrub-interval ago, unless that is 0; a restart goes on where it was.

What is known to be damaged, whoever has found it, is not given to others and not built
with. A build that needs it mends it if it can; 'cairn store repair' says what else helps.`,
		Example: `  cairn store scrub start
  cairn store scrub status --json`,
	}
	cmd.AddCommand(newStoreScrubStartCmd(env),
		newScrubActionCmd(env, &scrubAction{
			action: protocol.ScrubPause, short: "Read nothing until it is resumed",
			long: `Read nothing until 'cairn store scrub resume', also after a restart. One that is under
way stays where it is, and none begins.`,
		}),
		newScrubActionCmd(env, &scrubAction{
			action: protocol.ScrubResume, short: "Go on after a pause",
			long: `Go on where 'cairn store scrub pause' has stopped the reading, or begin again when the
settings say so.`,
		}),
		newStoreScrubStatusCmd(env))
	return cmd
}

// scrubAction is a command that does one thing.
type scrubAction struct {
	action      protocol.ScrubAction
	short, long string
}

func newScrubActionCmd(env *Env, a *scrubAction) *cobra.Command {
	o := &scrubOptions{request: protocol.ScrubRequest{Action: a.action}}
	cmd := &cobra.Command{
		Use: string(a.action) + " [--json]", Short: a.short, Long: a.long, Args: cobra.NoArgs,
		Example: fmt.Sprintf("  cairn store scrub %s\n  cairn store scrub %s --root ~/try", a.action, a.action),
		RunE:    func(cmd *cobra.Command, _ []string) error { return runStoreScrub(cmd, env, o) },
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func newStoreScrubStartCmd(env *Env) *cobra.Command {
	o := &scrubOptions{request: protocol.ScrubRequest{Action: protocol.ScrubStart}}
	cmd := &cobra.Command{
		Use:   "start [--wait] [--json]",
		Short: "Begin now, or go on",
		Long: `Begin to read all objects now, also if the settings have the daemon begin none by
itself. One that is under way goes on, paused or not. Without a daemon it goes on
only while a command runs: then --wait.

With --wait the exit code is 1 if anything is damaged.`,
		Example: `  cairn store scrub start
  cairn store scrub start --root ~/try --wait`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runStoreScrub(cmd, env, o) },
	}
	cmd.Flags().BoolVar(&o.request.Wait, "wait", false, "until all are read")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func newStoreScrubStatusCmd(env *Env) *cobra.Command {
	o := &scrubOptions{}
	cmd := &cobra.Command{
		Use:   "status [--json]",
		Short: "Say how far it is, and what is known to be damaged",
		Long: `Say how far the reading is, how fast, how long it will take, when the next begins, and
which objects are known to be damaged: until they are mended, deleted or read well.`,
		Example: `  cairn store scrub status
  cairn store scrub status --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runStoreScrub(cmd, env, o) },
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

type scrubOptions struct {
	request protocol.ScrubRequest
	json    bool
}

func runStoreScrub(cmd *cobra.Command, env *Env, o *scrubOptions) error {
	return env.withSession(cmd.Context(), func(s *session) error {
		st, err := s.Scrub(cmd.Context(), &o.request)
		if err != nil {
			return err
		}
		if o.json {
			err = env.printJSON(st)
		} else {
			env.printScrub(st)
		}
		if n := max(len(st.Damaged), st.DamagedCount); err == nil && o.request.Wait && n > 0 {
			err = hinted(fmt.Errorf("%w: %s damaged", errCorrupt, count(n, "object")), "'cairn store repair --dry-run --all' says what can be done about it")
		}
		return err
	})
}

// printScrub says how far the verification in the background is, and what is damaged.
func (e *Env) printScrub(s *protocol.Scrub) {
	if s == nil {
		e.printf("scrub: off (scrub-interval = 0)\n") // of an older daemon
		return
	}
	e.printf("scrub: %s\n", scrubText(s))
	for _, f := range s.Damaged {
		e.printf("  damaged: %s: %s, found %s; to mend it: cairn store repair %s\n", f.Path, stripEscapes(f.Text), f.Found.Local().Format(time.DateTime), f.Path)
	}
	if n := s.DamagedCount - len(s.Damaged); n > 0 {
		e.printf("  damaged: %d more; 'cairn store repair --dry-run --all' lists them\n", n)
	}
}

func scrubText(s *protocol.Scrub) string {
	far := fmt.Sprintf("%d of %s read, %s of %s, since %s", s.Paths, count(s.Paths+s.LeftPaths, "object"),
		formatSize(s.Bytes), formatSize(s.Bytes+s.LeftBytes), s.Began.Local().Format(time.DateTime))
	text := ""
	switch s.State {
	case protocol.ScrubRunning:
		text = far
		if s.Speed > 0 {
			text += fmt.Sprintf(", %s per second, about %v to go", formatSize(int64(s.Speed)), time.Duration(s.ToGo*float64(time.Second)).Round(time.Second))
		}
	case protocol.ScrubPaused:
		text = "paused; 'cairn store scrub resume' goes on"
		if s.Finished.IsZero() {
			text = far + ", " + text
		}
	case protocol.ScrubWaiting:
		text = far + ", not running; 'cairn store scrub start' goes on"
	case protocol.ScrubFinished:
		text = fmt.Sprintf("%s, %s, ended %s", count(s.Paths, "object"), formatSize(s.Bytes), s.Finished.Local().Format(time.DateTime))
	default:
		text = "none yet"
	}
	switch {
	case !s.Next.IsZero():
		text += ", the next " + s.Next.Local().Format(time.DateTime)
	case s.Interval == 0 && s.State != protocol.ScrubRunning:
		text += "; off (scrub-interval = 0)"
	}
	return text
}
