package settings

import (
	"slices"
	"strings"
)

// defaultFeatures are those of any machine; kvm comes with the device. Not "uid-range": a builder has one uid.
const defaultFeatures = "nixos-test benchmark big-parallel recursive-nix ca-derivations"

// table is every setting.
var table = []Setting{
	{"allowed-users", nil, Daemon, "*", "who may connect: names, uids, @groups, *", func(s *Settings) value { return (*words)(&s.AllowedUsers) }},
	{"auto-optimise-store", nil, Trusted, "false", "make equal files of all sizes hard links when they come", func(s *Settings) value { return (*flag)(&s.AutoOptimise) }},
	{"backup-interval", nil, Daemon, "3600", "seconds between backups of the database, when it has changed; 0: none", func(s *Settings) value { return (*seconds)(&s.BackupInterval) }},
	{"backup-keep", nil, Daemon, "4", "backups of the database that are kept", func(s *Settings) value { return (*count)(&s.BackupKeep) }},
	{"build-users-group", nil, Daemon, "", "members are refused as clients; builders have ids of their own here", func(s *Settings) value { return (*text)(&s.BuildUsers) }},
	{"builders", nil, Trusted, "", "machines that build for this one, or @FILE; @CONFDIR/machines when not given", func(s *Settings) value { return (*text)(&s.Builders) }},
	{"builders-use-substitutes", nil, Trusted, "true", "let builders fetch inputs from their caches before they are sent", func(s *Settings) value { return (*flag)(&s.BuildersSubstitute) }},
	{"compress-build-log", []string{"build-compress-log"}, Trusted, "true", "pack build logs when they are complete", func(s *Settings) value { return (*flag)(&s.CompressBuildLog) }},
	{"connect-timeout", nil, Anyone, "5", "seconds until a cache must have answered", func(s *Settings) value { return (*seconds)(&s.ConnectTimeout) }},
	{"cores", []string{"build-cores"}, Anyone, "0", "processors for one build; 0: all", func(s *Settings) value { return (*count)(&s.Cores) }},
	{"diff-hook", nil, Trusted, "", "program that shows how two results of one build differ", func(s *Settings) value { return (*text)(&s.DiffHook) }},
	{"download-attempts", nil, Trusted, "5", "tries of one download", func(s *Settings) value { return (*count)(&s.DownloadAttempts) }},
	{"experimental-features", nil, Daemon, "", "features of Nix that clients rely on", func(s *Settings) value { return (*words)(&s.ExperimentalOptions) }},
	{"extra-platforms", nil, Trusted, "", "platforms that this machine can build for besides its own", func(s *Settings) value { return (*words)(&s.ExtraPlatforms) }},
	{"fallback", []string{"build-fallback"}, Anyone, "false", "build what could not be substituted", func(s *Settings) value { return (*flag)(&s.Fallback) }},
	{"hashed-mirrors", nil, Trusted, "", "where builtin:fetchurl looks for files by hash first", func(s *Settings) value { return (*words)(&s.HashedMirrors) }},
	{"http-connections", []string{"binary-caches-parallel-connections"}, Trusted, "25", "parallel connections to caches", func(s *Settings) value { return (*count)(&s.HTTPConnections) }},
	{"impure-env", nil, Trusted, "", "name=value for impureEnvVars of fixed outputs", func(s *Settings) value { return (*pairs)(&s.ImpureEnv) }},
	{"keep-build-log", []string{"build-keep-log"}, Trusted, "true", "keep what builders print", func(s *Settings) value { return (*flag)(&s.KeepBuildLog) }},
	{"keep-derivations", []string{"gc-keep-derivations"}, Trusted, "true", "live outputs keep their derivations", func(s *Settings) value { return (*flag)(&s.KeepDerivations) }},
	{"keep-failed", nil, Anyone, "false", "leave the directory of a failed build", func(s *Settings) value { return (*flag)(&s.KeepFailed) }},
	{"keep-going", nil, Anyone, "false", "build what can be built after a failure", func(s *Settings) value { return (*flag)(&s.KeepGoing) }},
	{"keep-outputs", []string{"gc-keep-outputs"}, Trusted, "false", "live derivations keep their outputs", func(s *Settings) value { return (*flag)(&s.KeepOutputs) }},
	{"max-build-log-size", []string{"build-max-log-size"}, Trusted, "0", "bytes of log of one build; 0: no limit", func(s *Settings) value { return (*size)(&s.MaxLog) }},
	{"max-free", nil, Daemon, "0", "where a collection that min-free began ends: bytes, or percent of bytes and inodes; 0: when nothing is left to delete", func(s *Settings) value { return (*amount)(&s.MaxFree) }},
	{"max-jobs", []string{"build-max-jobs"}, Trusted, "auto", "builds at a time; auto: one per processor", func(s *Settings) value { return (*jobs)(&s.MaxJobs) }},
	{"max-silent-time", []string{"build-max-silent-time"}, Anyone, "0", "seconds without output; 0: no limit", func(s *Settings) value { return (*seconds)(&s.MaxSilent) }},
	{"max-substitution-jobs", []string{"substitution-max-jobs"}, Trusted, "16", "downloads at a time", func(s *Settings) value { return (*count)(&s.MaxSubstitutions) }},
	{"min-free", nil, Daemon, "0", "collect garbage when less is free where the store is: bytes, or percent of bytes and inodes; 0: never", func(s *Settings) value { return (*amount)(&s.MinFree) }},
	{"min-free-check-interval", nil, Daemon, "5", "seconds between looks at how much is free, besides those that requests cause", func(s *Settings) value { return (*seconds)(&s.MinFreeInterval) }},
	{"netrc-file", nil, Trusted, "", "credentials for caches; CONFDIR/netrc when not given", func(s *Settings) value { return (*text)(&s.NetrcFile) }},
	{"optimise-on-add", nil, Daemon, "true", "make files of 2 KiB to 64 MiB, with auto-optimise-store of all sizes, hard links to equal ones as they come", func(s *Settings) value { return (*flag)(&s.OptimiseOnAdd) }},
	{"post-build-hook", nil, Trusted, "", "program that is run after each build", func(s *Settings) value { return (*text)(&s.PostBuildHook) }},
	{"require-sigs", nil, Trusted, "true", "take from caches only what is signed by a trusted key, or proves itself", func(s *Settings) value { return (*flag)(&s.RequireSignatures) }},
	{"run-diff-hook", nil, Trusted, "false", "run diff-hook when a build is not reproducible", func(s *Settings) value { return (*flag)(&s.RunDiffHook) }},
	{"sandbox-paths", []string{"build-chroot-dirs", "build-sandbox-paths"}, Trusted, "", "files of the host that builders see: target[=source][?]", func(s *Settings) value { return (*words)(&s.SandboxPaths) }},
	{"scrub-interval", nil, Daemon, "2592000", "seconds from one verification of all objects in the background to the next; 0: none", func(s *Settings) value { return (*seconds)(&s.ScrubInterval) }},
	{"scrub-rate", nil, Daemon, "20971520", "bytes per second that the verification in the background reads; 0: no limit", func(s *Settings) value { return (*size)(&s.ScrubRate) }},
	{"secret-key-files", nil, Trusted, "", "keys that sign what is built here", func(s *Settings) value { return (*words)(&s.SecretKeyFiles) }},
	{"stalled-download-timeout", nil, Trusted, "30", "seconds until a download without progress is tried again", func(s *Settings) value { return (*seconds)(&s.StalledTimeout) }},
	{"substitute", []string{"build-use-substitutes"}, Anyone, "true", "fetch from caches", func(s *Settings) value { return (*flag)(&s.Substitute) }},
	{"substituters", []string{"binary-caches"}, Trusted, "", "caches, by URI", func(s *Settings) value { return (*words)(&s.Substituters) }},
	{"system", nil, Trusted, "", "what this machine builds for; empty: what it is", func(s *Settings) value { return (*text)(&s.System) }},
	{"system-features", nil, Trusted, defaultFeatures, "what derivations may require of this machine", func(s *Settings) value { return (*words)(&s.SystemFeatures) }},
	{"timeout", []string{"build-timeout"}, Anyone, "0", "seconds for one build; 0: no limit", func(s *Settings) value { return (*seconds)(&s.Timeout) }},
	{"trusted-public-keys", []string{"binary-cache-public-keys"}, Trusted, "", "keys whose signatures count, besides those of the ACL", func(s *Settings) value { return (*words)(&s.TrustedPublicKeys) }},
	{"trusted-substituters", []string{"trusted-binary-caches"}, Daemon, "", "caches that everybody may choose", func(s *Settings) value { return (*words)(&s.TrustedSubstituters) }},
	{"trusted-users", nil, Daemon, "root", "who may do everything: names, uids, @groups, *", func(s *Settings) value { return (*words)(&s.TrustedUsers) }},
	{"version-text", nil, Daemon, "", "version that the handshake shows; empty: cairn's", func(s *Settings) value { return (*text)(&s.VersionText) }},
}

// foreign are settings of Nix that mean nothing here: they belong to its clients, or to what this daemon
// does in one way only. They are ignored without a word.
var foreign = strings.Fields(`
	accept-flake-config access-tokens allow-dirty allow-import-from-derivation allow-new-privileges allow-symlinked-store
	allow-unsafe-native-code-during-evaluation allowed-impure-host-deps allowed-uris auto-allocate-uids bash-prompt bash-prompt-prefix
	bash-prompt-suffix build-dir build-hook build-poll-interval commit-lockfile-summary debugger-on-trace
	download-buffer-size download-speed enforce-determinism eval-cache eval-system filter-syscalls flake-registry
	fsync-metadata fsync-store-paths gc-reserved-space http2 ignore-try ignored-acls impersonate-linux-26 json-log-path
	keep-env-derivations log-lines max-call-depth nar-buffer-size narinfo-cache-negative-ttl
	narinfo-cache-positive-ttl nix-path plugin-files poll-interval pre-build-hook preallocate-contents pure-eval reject-flake-config repeat
	require-drop-supplementary-groups restrict-eval sandbox sandbox-build-dir sandbox-dev-shm-size sandbox-fallback show-trace
	ssl-cert-file start-id store sync-before-registering tarball-ttl trace-function-calls trace-verbose upgrade-nix-store-path-url
	use-case-hack use-cgroups use-registries use-sqlite-wal use-xdg-base-directories user-agent-suffix warn-dirty
	build-repeat build-use-sandbox env-keep-derivations id-count remote-build`)

func isForeign(name string) bool {
	return slices.Contains(foreign, name) || slices.Contains(foreign, strings.TrimPrefix(name, "extra-"))
}
