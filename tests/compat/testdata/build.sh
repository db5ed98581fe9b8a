# Builds that work and builds that fail.
b nix-build g.nix -A broken --no-out-link
b nix-build g.nix -A needsBroken --no-out-link
b nix-build g.nix -A wrong --no-out-link
b nix-build g.nix -k -A needsBroken -A two -A broken --no-out-link
b nix-build g.nix -A two -A first --no-out-link
b nix-build g.nix -A two -A two.dev
u ls
x readlink result result-2 result-dev result-2-dev
b nix-build g.nix -A first -o sub/link
mkdir sub
b nix-build g.nix -A first -o sub/link
x readlink sub/link
b nix-store -r $(nix-instantiate g.nix -A broken)
b nix-store -r $(nix-instantiate g.nix -A needsBroken) $(nix-instantiate g.nix -A first) --keep-going
b nix-store -r $(nix-instantiate g.nix -A two)
b nix-store -r $(nix-instantiate g.nix -A two)!dev
b nix-store -r $NIX_STORE_DIR/00000000000000000000000000000000-a
b nix-store -r $NIX_STORE_DIR/00000000000000000000000000000000-a.drv
b nix build -f g.nix broken
b nix build -f g.nix needsBroken
b nix build -f g.nix wrong
b nix build -f g.nix broken needsBroken two --keep-going --no-link
b nix build -f g.nix two first --print-out-paths --no-link
b nix-build g.nix -A first --check --no-out-link
b nix build -f g.nix first --rebuild --no-link
cat > odd.nix <<'END'
let d = name: extra: derivation ({ inherit name; system = builtins.currentSystem; builder = "/bin/sh"; } // extra); in {
  random = d "random" { args = [ "-c" "read x < /proc/sys/kernel/random/uuid; echo $x > $out" ]; };
  nothing = d "nothing" { args = [ "-c" "exit 0" ]; };
  killed = d "killed" { args = [ "-c" "kill -9 $$" ]; };
  elsewhere = d "elsewhere" { system = "mips-plan9"; args = [ "-c" "echo > $out" ]; };
  feature = d "feature" { requiredSystemFeatures = [ "quantum" ]; args = [ "-c" "echo > $out" ]; };
  nobuilder = d "nobuilder" { builder = "/does/not/exist"; };
  forbidden = d "forbidden" { allowedReferences = [ ]; args = [ "-c" "echo $out > $out" ]; };
  flatdir = d "flatdir" { args = [ "-c" "umask 0; echo x > $out/" ]; outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "0000000000000000000000000000000000000000000000000000"; };
  badhash = d "badhash" { args = [ "-c" "echo x > $out" ]; outputHashMode = "recursive"; outputHashAlgo = "sha1"; outputHash = "0000000000000000000000000000000000000000"; };
}
END
b nix-build odd.nix -A random --no-out-link -o r >/dev/null
for a in nothing killed elsewhere feature nobuilder forbidden flatdir badhash; do b nix-build odd.nix -A $a --no-out-link; done
for a in nothing killed elsewhere feature nobuilder forbidden flatdir badhash; do b nix build -f odd.nix $a --no-link; done
nix-build odd.nix -A random --no-out-link >/dev/null 2>&1
b nix-build odd.nix -A random --no-out-link --check
b nix build -f odd.nix random --rebuild --no-link
b nix-build g.nix -A onFirst --dry-run
b nix-store -r --dry-run $(nix-instantiate g.nix -A self)
b nix-build g.nix -A self --no-out-link -j0
b nix-build -E '1' --no-out-link
b nix-build --no-out-link -E 'derivation { name = "a b"; system = "x"; builder = "x"; }'
b nix-build --no-out-link -E 'derivation { name = "to"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "read x < /dev/zero" ]; }' --timeout 1
b nix-build --no-out-link -E 'derivation { name = "log"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "while :; do echo 0123456789; done" ]; }' --option max-build-log-size 1000
