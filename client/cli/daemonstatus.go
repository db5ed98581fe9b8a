package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"cairn/client"
	"cairn/daemon/protocol"
)

func newDaemonStatusCmd(env *Env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say what the running daemon is and does",
		Long: `Say what the running daemon is, how much its store has, and what its clients do. What
others do is told to those who may inspect ('cairn acl --help').

It also says how far the daemon is with reading all objects in the background (see
'cairn store scrub --help'), and which of them are known to be damaged.`,
		Example: `  cairn daemon status
  cairn daemon status --root ~/try --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runDaemonStatus(cmd.Context(), env, asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func runDaemonStatus(ctx context.Context, env *Env, asJSON bool) error {
	layout, err := env.layout()
	if err != nil {
		return err
	}
	conn, err := client.Dial(ctx, layout.SocketPath, &client.Options{Dir: layout.Dir})
	if nobodyListens(err) {
		return hinted(fmt.Errorf("connect to %s: %w", layout.SocketPath, errNoDaemon), "'cairn daemon' starts one")
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	st, err := conn.Status(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		return env.printJSON(st)
	}
	return env.printStatus(st)
}

func (e *Env) printStatus(st *protocol.DaemonStatus) error {
	state := "serving"
	if st.Draining {
		state = "ending: waiting for its clients"
	}
	durability := "on"
	if !st.Durable {
		durability = "OFF (--no-durability): a power cut may lose or damage anything"
	}
	e.printf("cairn %s, process %d, %s, for %v\n", st.Version, st.PID, state, time.Duration(st.Uptime)*time.Second)
	e.printf("store: %s, %s\n", st.StoreDir, count(st.Paths, "object"))
	e.printf("durability: %s\n", durability)
	if st.Space.TotalBytes > 0 {
		e.printf("free: %s of %s%s\n", formatSize(st.Space.Bytes), formatSize(st.Space.TotalBytes), inodesLeft(st.Space))
	}
	if st.Automatic != nil {
		e.printf("automatic collection: %s\n", automatic(st.Automatic))
	}
	e.printScrub(st.Scrub)
	e.printf("clients: %d\n", st.Connections)
	if len(st.Sessions) == 0 {
		return nil
	}
	rows := [][]string{{"UID", "PID", "DOES", "FOR"}}
	for _, b := range st.Sessions {
		does, since := "nothing", ""
		if b.Operation != "" {
			does, since = b.Operation, time.Duration(b.Seconds*float64(time.Second)).Round(time.Millisecond).String()
		}
		rows = append(rows, []string{strconv.Itoa(b.UID), strconv.Itoa(b.PID), does, since})
	}
	return e.printTable(rows)
}

func inodesLeft(s protocol.Space) string {
	if s.TotalInodes == 0 {
		return ""
	}
	return fmt.Sprintf(", %d of %d inodes", s.Inodes, s.TotalInodes)
}

// automatic says what the daemon does when space is low.
func automatic(a *protocol.AutoCollection) string {
	text := fmt.Sprintf("below %s free, until %s are", a.MinFree, a.MaxFree)
	if a.MaxFree == "0" {
		text = fmt.Sprintf("below %s free, of all garbage", a.MinFree)
	}
	switch {
	case a.Running:
		return text + "; running"
	case a.Last == nil:
		return text + "; none yet"
	case a.Error != "":
		text += "; the last failed: " + stripEscapes(a.Error)
	default:
		text += fmt.Sprintf("; %s, the last at %s: %s, %s", count(a.Runs, "run"), a.Last.Format(time.DateTime), count(a.Objects, "object"), formatSize(a.BytesFreed))
	}
	if a.Next != nil {
		text += "; space is still low, next try after " + a.Next.Format(time.TimeOnly)
	}
	return text
}
