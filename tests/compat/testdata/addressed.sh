# Content addresses: floating, of several outputs, that refer to themselves and to each other; deferred.
cat > ca.nix <<'END'
let d = name: script: extra: derivation ({ inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ]; __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; } // extra); in rec {
  multi = d "multi" "echo $out > $out; echo $out > $dev; echo $dev $dev > $doc" { outputs = [ "out" "dev" "doc" ]; };
  flat = d "flat" "echo flat > $out" { outputHashMode = "flat"; };
  sha1 = d "sha1" "echo sha1 > $out" { outputHashAlgo = "sha1"; };
  sha512 = d "sha512" "echo sha512 > $out" { outputHashAlgo = "sha512"; outputHashMode = "flat"; };
  selfsha1 = d "selfsha1" "echo $out > $out" { outputHashAlgo = "sha1"; };
  flatself = d "flatself" "echo $out > $out" { outputHashMode = "flat"; };
  user = d "user" "echo ${multi} ${multi.dev} > $out" {};
  deferred = derivation { name = "deferred"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo ${multi.doc} ${user} $out > $out" ]; };
  same1 = d "same" "echo same; echo same > $out" {};
  same2 = d "same" ": other; echo same > $out" {};
  cutoff1 = d "cutoff" "read x < ${same1}; echo $x > $out" {};
  cutoff2 = d "cutoff" "read x < ${same2}; echo $x > $out" {};
  tree = d "tree" "echo $out > $out" { passthru = "1"; };
  fails = d "fails" "echo ${multi}; exit 1" {};
}
END
for a in multi multi.dev multi.doc flat sha1 sha512 user deferred same1 same2 cutoff1 cutoff2; do
  x nix-instantiate ca.nix -A $a
  x nix-build ca.nix -A $a --no-out-link
  p=$(nix-build ca.nix -A $a --no-out-link 2>/dev/null)
  x nix-store -q --hash $p
  u nix-store -qR $p
  x nix-store -q --deriver $p
done
# nix 2.8 takes these two
if new; then b nix-build ca.nix -A selfsha1 --no-out-link; b nix-build ca.nix -A flatself --no-out-link; fi
b nix-build ca.nix -A fails --no-out-link
x nix-build ca.nix -A user --no-out-link --check
x nix-build ca.nix -A multi --no-out-link --check
x nix build -f ca.nix deferred -o r
x readlink r
x nix path-info -f ca.nix multi user
u nix-store -q --outputs $(nix-instantiate ca.nix -A multi)
u nix-store -q --outputs $(nix-instantiate ca.nix -A deferred)
u nix-store -qR --include-outputs $(nix-instantiate ca.nix -A user)
u nix realisation info -f ca.nix user
if ! new; then u nix realisation info -f ca.nix multi --json; fi
