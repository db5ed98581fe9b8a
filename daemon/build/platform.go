package build

import (
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/cpu"

	"cairn/daemon/protocol"
	"cairn/daemon/sandbox"
)

// featureKVM is the system feature whose builders see /dev/kvm; featureRecursive that whose builders get a daemon.
const (
	featureKVM       = "kvm"
	featureRecursive = "recursive-nix"
)

// nativeSystems returns the names of what this machine runs, its own first.
func nativeSystems() []string {
	switch runtime.GOARCH {
	case "amd64":
		list := []string{"x86_64-linux", "i686-linux", "x86_64-v1-linux"}
		if x := cpu.X86; x.HasSSE42 && x.HasSSSE3 && x.HasPOPCNT && x.HasCX16 {
			list = append(list, "x86_64-v2-linux")
			if x.HasAVX2 && x.HasBMI1 && x.HasBMI2 && x.HasFMA {
				list = append(list, "x86_64-v3-linux")
			}
		}
		return list
	case "arm64":
		return []string{"aarch64-linux"}
	}
	return []string{runtime.GOARCH + "-linux"}
}

// features returns what this machine offers to derivations that require it.
func (b *Builder) features() []string {
	list := slices.Clone(b.settings.SystemFeatures)
	if _, err := os.Stat("/dev/kvm"); err == nil && !slices.Contains(list, featureKVM) {
		list = append(list, featureKVM)
	}
	if !b.settings.HasExperimental(featureRecursive) {
		list = slices.DeleteFunc(list, func(f string) bool { return f == featureRecursive })
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// requires reports whether the derivation requires a feature.
func (a *attempt) requires(feature string) bool {
	return slices.Contains(requiredFeatures(a.drv), feature)
}

// flag reads an attribute that is true or false.
func (a *attempt) flag(name string) bool {
	attrs, err := a.structured()
	if err != nil {
		return false
	}
	if attrs != nil {
		v, _ := attrs[name].(bool)
		return v
	}
	return a.drv.Env[name] == "1"
}

// checkWishes refuses a derivation that wants to see more of the host than any builder does.
func (a *attempt) checkWishes() error {
	if a.flag("__noChroot") {
		return failure(protocol.InputRejected, "derivation '%s' has '__noChroot' set, but that's not allowed when 'sandbox' is 'true'; this daemon builds in sandboxes only", a.key.drv)
	}
	attrs, err := a.structured()
	if err != nil {
		return err
	}
	if deps := attrs.words(a.drv.Env, "__impureHostDeps"); len(deps) > 0 {
		return failure(protocol.InputRejected, "derivation '%s' requested impure path '%s', but it was not in allowed-impure-host-deps; the setting sandbox-paths can give it to every builder", a.key.drv, deps[0])
	}
	return nil
}

// devices are what a builder sees because of the features it requires.
func (a *attempt) devices() []sandbox.Mount {
	if !a.requires(featureKVM) {
		return nil
	}
	return []sandbox.Mount{{Source: "/dev/kvm", Target: "/dev/kvm", Writable: true, Optional: true}}
}
