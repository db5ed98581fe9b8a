package cli

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/client"
	"cairn/daemon"
	"cairn/daemon/protocol"
	"cairn/store/gc"
)

func newGCRootCmd(env *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "root",
		Short: "Keep objects under a name, for ever or for a time",
		Long: `Keep objects, and what they refer to, under a name. Such a root belongs to the user
who adds it. It outlives the daemon and the machine's restart, and ends when its
owner deletes it, or at its expiry: then the next collection removes it.

Other roots are made elsewhere: by builds with a result link, by profiles, by work that
is running. 'cairn gc --roots' lists them all.`,
		Example: `  cairn gc root add ./result --name demo --expires 7d
  cairn gc root list
  cairn gc root delete demo`,
	}
	cmd.AddCommand(newGCRootAddCmd(env), newGCRootListCmd(env), newGCRootDeleteCmd(env))
	return cmd
}

type rootAddOptions struct {
	name, expires string
	json          bool
}

func newGCRootAddCmd(env *Env) *cobra.Command {
	o := &rootAddOptions{}
	cmd := &cobra.Command{
		Use:   "add [--name NAME] [--expires AGE] [--json] PATH",
		Short: "Keep an object until its root is deleted or expires",
		Long: `Keep an object and what it refers to. PATH is an object, or a link to one.

A root of yours that has the name already is replaced, so that adding one again renews
its expiry. It takes the right "root", which everybody has by default.`,
		Example: `  cairn gc root add ./result --name demo --expires 7d
  cairn gc root add /cairn/store/f2ib…-hello`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runGCRootAdd(cmd.Context(), env, o, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&o.name, "name", "", "call the root `NAME` (default: as the object)")
	f.StringVar(&o.expires, "expires", "", "keep it for `AGE`, for example 12h or 7d (default: for ever)")
	f.BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func runGCRootAdd(ctx context.Context, env *Env, o *rootAddOptions, arg string) error {
	req := &protocol.AddRootRequest{Name: o.name}
	if o.expires != "" {
		age, err := parseAge(o.expires)
		if err == nil && age < time.Second {
			err = errors.New("it would be over at once; a second is the least")
		}
		if err != nil {
			return &usageError{fmt.Errorf("--expires: %w", err)}
		}
		req.TTL = int64(age / time.Second)
	}
	return env.withSession(ctx, func(s *session) error {
		p, err := s.object(env, arg)
		if err != nil {
			return err
		}
		req.Path = p
		r, err := s.AddRoot(ctx, req)
		if err != nil {
			return err
		}
		if o.json {
			return env.printJSON(r)
		}
		env.printf("%s → %s\n", r.Name, r.Target)
		if r.Who != nil && !r.Who.Until.IsZero() {
			env.note("kept until %s", r.Who.Until.Format(time.DateTime))
		}
		return nil
	})
}

func newGCRootListCmd(env *Env) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "list [--json]",
		Short: "List the roots that have names, with owners and expiries",
		Long: `List the roots that 'cairn gc root add' has made, of all users, with owner, age and
expiry. Those that have expired are not listed: they keep nothing.`,
		Example: `  cairn gc root list
  cairn gc root list --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return env.withSession(cmd.Context(), func(s *session) error { return runGCRootList(cmd.Context(), env, s, asJSON) })
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func runGCRootList(ctx context.Context, env *Env, s *session, asJSON bool) error {
	list, err := namedRoots(ctx, s)
	if err != nil {
		return err
	}
	if asJSON {
		return env.printJSON(list)
	}
	if len(list) == 0 {
		env.note("there are no roots with names")
		return nil
	}
	now := time.Now()
	rows := [][]string{{"NAME", "OWNER", "AGE", "EXPIRES", "OBJECT"}}
	for _, r := range list {
		w := r.Who
		if w == nil {
			w = &protocol.Who{UID: -1}
		}
		expires := "never"
		if !w.Until.IsZero() {
			expires = "in " + formatAge(w.Until.Sub(now))
		}
		rows = append(rows, []string{r.Name, userName(w.UID), formatAge(now.Sub(w.Since)), expires, r.Target.String()})
	}
	return env.printTable(rows)
}

func namedRoots(ctx context.Context, s *session) ([]protocol.RootInfo, error) {
	all, err := s.Roots(ctx)
	if err != nil {
		return nil, err
	}
	list := []protocol.RootInfo{}
	for _, r := range all {
		if r.Kind == string(gc.KindNamed) {
			list = append(list, r)
		}
	}
	return list, nil
}

type rootDeleteOptions struct {
	owner string
	json  bool
}

func newGCRootDeleteCmd(env *Env) *cobra.Command {
	o := &rootDeleteOptions{}
	cmd := &cobra.Command{
		Use:   "delete [--owner USER] [--json] NAME...",
		Short: "Delete roots by name",
		Long: `Delete roots of yours, or of another user if you have the right "pin": all that are
named, or none if one of them does not exist. Objects that nothing else keeps go with
the next collection.`,
		Example: `  cairn gc root delete demo
  cairn gc root delete --owner alice demo old-demo`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runGCRootDelete(cmd.Context(), env, o, args) },
		ValidArgsFunction: func(cmd *cobra.Command, done []string, _ string) ([]string, cobra.ShellCompDirective) {
			return completeRoots(cmd.Context(), env), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().StringVar(&o.owner, "owner", "", "those of `USER`, by name or number")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

// completeRoots lists the names of roots for a shell, where an error has no place.
func completeRoots(ctx context.Context, env *Env) []string {
	var names []string
	env.withSession(ctx, func(s *session) error {
		list, err := namedRoots(ctx, s)
		for _, r := range list {
			names = append(names, r.Name)
		}
		return err
	})
	return names
}

func runGCRootDelete(ctx context.Context, env *Env, o *rootDeleteOptions, names []string) error {
	req := &protocol.DeleteRootsRequest{Names: names}
	if o.owner != "" {
		uid, err := userNumber(o.owner)
		if err != nil {
			return &usageError{fmt.Errorf("--owner: %w", err)}
		}
		req.UID = &uid
	}
	return env.withSession(ctx, func(s *session) error {
		gone, err := s.DeleteRoots(ctx, req)
		if err != nil && strings.Contains(err.Error(), "there is no such root") {
			return hinted(err, "'cairn gc root list' lists them; one of another user takes --owner USER")
		}
		if err != nil {
			return err
		}
		if o.json {
			return env.printJSON(gone)
		}
		for _, r := range gone {
			env.printf("deleted %s → %s\n", r.Name, r.Target)
		}
		return nil
	})
}

// userNumber resolves a user's name. A number needs no user.
func userNumber(name string) (int, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return int(n), nil
	}
	who, err := daemon.PersonOf(name)
	return who.UID, err
}

// userName is the name of a user, or the number of one without.
func userName(uid int) string {
	if uid < 0 {
		return "unknown"
	}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", uid)
}

// gcRoots lists all roots. A daemon that is not ours tells links and targets.
func gcRoots(ctx context.Context, env *Env, s *session, o *gcOptions) error {
	roots, err := s.Roots(ctx)
	if errors.Is(err, client.ErrUnsupported) {
		roots, err = foreignRoots(ctx, s)
	}
	if err != nil {
		return err
	}
	if o.json {
		return env.printJSON(roots)
	}
	for _, r := range roots {
		link := r.Link
		switch gc.Kind(r.Kind) {
		case gc.KindLease, gc.KindProcess, gc.KindTemporary:
			link = "{" + r.Kind + ":" + link + "}"
		}
		env.printf("%s → %s%s\n", stripEscapes(link), r.Target, who(r.Who))
	}
	return nil
}

func foreignRoots(ctx context.Context, s *session) ([]protocol.RootInfo, error) {
	found, err := s.FindRoots(ctx)
	list := make([]protocol.RootInfo, len(found))
	for i, r := range found {
		list[i] = protocol.RootInfo{Kind: string(gc.KindLink), Link: r.Link, Target: r.Target}
	}
	return list, err
}
