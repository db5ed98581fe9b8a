package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"cairn/archive"
	"cairn/daemon"
	"cairn/daemon/protocol"
	"cairn/daemon/settings"
	"cairn/store/disk"
)

func newACLCmd(env *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "acl",
		GroupID: "service",
		Short:   "Say who may do what: users, groups and signing keys",
		Long: `Say who may do what with this store.

The access list, acl in the configuration directory, has a line for each rule: whom
it is about, and verbs. People are user:NAME, uid:N, @GROUP, gid:N, or * for
everybody; a public key is itself. Root and the user that the daemon runs as may do
everything. Nix's settings are rules, too: trusted-users may do all, allowed-users
what "default" stands for (unless the list has a rule about *), and
trusted-public-keys may import.

` + verbHelp() + `
"all", "default" and "none" stand for several. import (of users), pin, repair and
override are as good as being root.`,
		Example: `  cairn acl list
  cairn acl allow user:alice repair,gc
  cairn acl revoke '*' build`,
	}
	cmd.AddCommand(newACLListCmd(env), newACLAllowCmd(env), newACLRevokeCmd(env), newACLCheckCmd(env), newACLMineCmd(env))
	return cmd
}

// verbHelp is the table of the verbs.
func verbHelp() string {
	var b strings.Builder
	for _, v := range archive.All.Each() {
		mark := ' '
		if archive.Ordinary.Has(v) {
			mark = '*'
		}
		fmt.Fprintf(&b, "  %-9s%c %s\n", v, mark, v.Doc())
	}
	b.WriteString("  (* default)\n")
	return b.String()
}

// accessRule is a rule with where it comes from.
type accessRule struct {
	archive.Rule
	From string `json:"from"`
}

// accessRules are the rules of a layout: the list's, and those of the settings that files and the environment say.
func accessRules(env *Env, layout disk.Layout) ([]accessRule, *settings.Settings, error) {
	acl, err := archive.LoadACL(aclFile(layout))
	if err != nil {
		return nil, nil, err
	}
	set, err := (&engineOptions{}).settings(layout, env.Getenv, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, err
	}
	var rules []accessRule
	for _, r := range acl.Rules() {
		rules = append(rules, accessRule{r, aclFile(layout)})
	}
	more, problems := daemon.SettingRules(acl, set)
	for _, r := range more {
		rules = append(rules, accessRule{r.Rule, "setting " + r.Setting})
	}
	for _, p := range problems {
		env.note("warning: %v", p)
	}
	return rules, set, nil
}

func newACLListCmd(env *Env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List all rules and where they come from",
		Long: `List all rules: those of the access list, and those that the settings make. What a
running daemon was told on its command line is not known here; 'cairn acl mine' asks
the daemon itself.`,
		Example: `  cairn acl list
  cairn acl list --json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return runACLList(env, asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func runACLList(env *Env, asJSON bool) error {
	layout, err := env.layout()
	if err != nil {
		return err
	}
	rules, _, err := accessRules(env, layout)
	if err != nil {
		return err
	}
	if asJSON {
		return env.printJSON(slices.Concat([]accessRule{}, rules))
	}
	rows := [][]string{{"SUBJECT", "VERBS", "FROM"}, {"uid:0", "all", "always"}}
	for _, r := range rules {
		rows = append(rows, []string{r.Subject.String(), r.Verbs.String(), r.From})
	}
	return env.printTable(rows)
}

type aclChange struct {
	dryRun bool
	change func(path string, r archive.Rule) (bool, error)
	plan   func(a *archive.ACL, r archive.Rule) (*archive.ACL, bool)
	// otherwise is what SUBJECT alone means for people.
	otherwise archive.Verbs
}

func newACLAllowCmd(env *Env) *cobra.Command {
	o := &aclChange{change: archive.Allow, plan: (*archive.ACL).Allowing}
	cmd := &cobra.Command{
		Use:   "allow [--dry-run] SUBJECT [VERB…]",
		Short: "Let a user, a group or a key do something",
		Long: `Add a rule to the access list, unless what it says is there. The daemon sees it at
once: keys count from the next request on, rights of users from their next session.

SUBJECT is user:NAME, uid:N, @GROUP, gid:N, * for everybody, a public key, a file
with one, or - for one on standard input. A key can only import, so no verb is
needed. A first rule about everybody adds to what everybody may do by default.`,
		Example: `  cairn acl allow builder-1.pub
  cairn acl allow @deploy repair gc
  ssh web-1 cat /etc/cairn/signing-key.pub | cairn acl allow -`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return runACLChange(env, o, args) },
	}
	cmd.Flags().BoolVarP(&o.dryRun, "dry-run", "n", false, "only print what the list would say")
	return cmd
}

func newACLRevokeCmd(env *Env) *cobra.Command {
	o := &aclChange{change: archive.Revoke, plan: (*archive.ACL).Revoking, otherwise: archive.All}
	cmd := &cobra.Command{
		Use:   "revoke [--dry-run] SUBJECT [VERB…]",
		Short: "Take rights away from a user, a group or a key",
		Long: `Take verbs, or all that there are, out of the rules about SUBJECT. Rights that come
from elsewhere stay: those of a group, of everybody, and of the settings; 'cairn acl
check' shows what is left. What everybody may do by default can be revoked, too.`,
		Example: `  cairn acl revoke builder-1.pub
  cairn acl revoke user:alice gc
  cairn acl revoke '*'`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return runACLChange(env, o, args) },
	}
	cmd.Flags().BoolVarP(&o.dryRun, "dry-run", "n", false, "only print what the list would say")
	return cmd
}

func runACLChange(env *Env, o *aclChange, args []string) error {
	layout, err := env.layout()
	if err != nil {
		return err
	}
	rule, err := parseRule(env, args, o.otherwise)
	if err != nil {
		return err
	}
	file := aclFile(layout)
	if o.dryRun {
		acl, err := archive.LoadACL(file)
		if err != nil {
			return err
		}
		planned, _ := o.plan(acl, rule)
		env.printf("%s", planned.Bytes())
		return nil
	}
	changed, err := o.change(file, rule)
	if err != nil {
		return permissionHint(err)
	}
	if !changed {
		env.note("nothing to change in %s", file)
		return nil
	}
	acl, err := archive.LoadACL(file)
	if err != nil {
		return err
	}
	for _, r := range acl.Rules() {
		if r.Subject == rule.Subject {
			env.printf("%s\n", r)
		}
	}
	return nil
}

// parseRule understands SUBJECT [VERB…]. Without verbs it is import for a key; for others there must be some, or else otherwise holds.
func parseRule(env *Env, args []string, otherwise archive.Verbs) (archive.Rule, error) {
	s, err := parseSubject(env, args[0])
	if err != nil {
		return archive.Rule{}, err
	}
	_, isKey := s.Key()
	switch {
	case len(args) > 1:
		v, err := archive.ParseVerbs(strings.Join(args[1:], ","))
		if err != nil {
			return archive.Rule{}, &usageError{err}
		}
		return archive.Rule{Subject: s, Verbs: v}, nil
	case isKey:
		return archive.Rule{Subject: s, Verbs: archive.Import}, nil
	case otherwise == 0:
		return archive.Rule{}, &usageError{fmt.Errorf("say what %s may do: all, default, or some of %s", s, archive.All.Names())}
	}
	return archive.Rule{Subject: s, Verbs: otherwise}, nil
}

// parseSubject also understands the file of a public key.
func parseSubject(env *Env, text string) (archive.Subject, error) {
	if text == "-" {
		b, err := io.ReadAll(io.LimitReader(env.Stdin, maxKey))
		if err != nil {
			return archive.Subject{}, fmt.Errorf("read public key: %w", err)
		}
		key, err := archive.ParsePublicKey(strings.TrimSpace(string(b)))
		if err != nil {
			return archive.Subject{}, fmt.Errorf("read public key: %w", err)
		}
		return archive.KeySubject(key), nil
	}
	s, err := archive.ParseSubject(text)
	if err == nil {
		return s, nil
	}
	if _, statErr := os.Stat(env.path(text)); statErr == nil {
		key, err := archive.ReadPublicKey(env.path(text))
		if err != nil {
			return archive.Subject{}, err
		}
		return archive.KeySubject(key), nil
	}
	return archive.Subject{}, &usageError{err}
}

type aclCheckOptions struct {
	user string
	json bool
}

// aclAnswer is what somebody may do, and why.
type aclAnswer struct {
	archive.Person
	Rights archive.Verbs `json:"rights"`
	Rules  []accessRule  `json:"rules"`
}

func newACLCheckCmd(env *Env) *cobra.Command {
	o := &aclCheckOptions{}
	cmd := &cobra.Command{
		Use:   "check [--user NAME] [VERB…]",
		Short: "Say what a user may do, and which rules say so",
		Long: `Say what a user may do, from the access list, the settings and the groups that the
user database knows, and which rules say so. With verbs, the exit code is 0 only if
the user may do all of them, and 7 if not.`,
		Example: `  cairn acl check --user alice
  cairn acl check --user www-data build && echo yes`,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error { return runACLCheck(env, o, args) },
	}
	cmd.Flags().StringVar(&o.user, "user", "", "whom it is about, `NAME` or number; default: you")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func runACLCheck(env *Env, o *aclCheckOptions, args []string) error {
	var asked archive.Verbs
	if len(args) > 0 {
		var err error
		if asked, err = archive.ParseVerbs(strings.Join(args, ",")); err != nil {
			return &usageError{err}
		}
	}
	layout, err := env.layout()
	if err != nil {
		return err
	}
	if o.user == "" {
		o.user = strconv.Itoa(os.Getuid())
	}
	answer, err := checkPerson(env, layout, o.user)
	if err != nil {
		return err
	}
	if o.json {
		err = env.printJSON(answer)
	} else {
		err = env.printRights(answer)
	}
	if missing := asked &^ answer.Rights; err == nil && missing != 0 {
		return hinted(fmt.Errorf("user %s may not %s: %w", o.user, missing, protocol.ErrNotAllowed), "'cairn acl allow uid:%d %s' lets them", answer.UID, missing)
	}
	return err
}

func checkPerson(env *Env, layout disk.Layout, user string) (*aclAnswer, error) {
	who, err := daemon.PersonOf(user)
	if err != nil {
		return nil, err
	}
	rules, set, err := accessRules(env, layout)
	if err != nil {
		return nil, err
	}
	answer := &aclAnswer{Person: who, Rules: []accessRule{}}
	if who.UID == 0 {
		answer.Rights = archive.All
		return answer, nil
	}
	if set.BuildUsers != "" && slices.Contains(who.Groups, set.BuildUsers) {
		env.note("members of %s, the setting build-users-group, are refused", set.BuildUsers)
		return answer, nil
	}
	for _, r := range rules {
		if who.Is(r.Subject) {
			answer.Rules = append(answer.Rules, r)
			answer.Rights |= r.Verbs
		}
	}
	if answer.Rights != 0 {
		answer.Rights |= archive.Connect
	}
	return answer, nil
}

func (e *Env) printRights(a *aclAnswer) error {
	rows := [][]string{{"VERB", "MAY", "SAYS"}}
	for _, v := range archive.All.Each() {
		may, says := "no", ""
		if a.Rights.Has(v) {
			may = "yes"
		}
		for _, r := range a.Rules {
			if r.Verbs.Has(v) {
				says = fmt.Sprintf("%s: %s", r.From, r.Subject)
				break
			}
		}
		rows = append(rows, []string{v.String(), may, says})
	}
	return e.printTable(rows)
}

func newACLMineCmd(env *Env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "mine",
		Short: "Ask the daemon what you may do",
		Long: `Ask the running daemon who it thinks you are, by the credentials of the connection,
and what you may do.`,
		Example: `  cairn acl mine
  cairn acl mine --root ~/try
  sudo -u www-data cairn acl mine --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runACLMine(cmd.Context(), env, asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func runACLMine(ctx context.Context, env *Env, asJSON bool) error {
	return env.withSession(ctx, func(s *session) error {
		st, err := s.Status(ctx)
		if err != nil {
			return err
		}
		if len(st.You.GIDs) == 0 {
			return errors.New("the daemon is older than this program and does not say; restart it")
		}
		if asJSON {
			return env.printJSON(st.You)
		}
		who := "uid " + strconv.Itoa(st.You.UID)
		if st.You.Name != "" {
			who = st.You.Name + ", " + who
		}
		env.note("you are %s, groups %s", who, strings.Join(st.You.Groups, " "))
		for _, v := range archive.All.Each() {
			if st.You.Rights.Has(v) {
				env.printf("%-9s %s\n", v, v.Doc())
			}
		}
		return nil
	})
}
