# Shells and programs.
cat > s.nix <<'END'
let dep = derivation { name = "dep"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo dep > $out" ]; }; in
derivation { name = "s"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "exit 1" ]; foo = "bar"; inherit dep; passAsFile = [ "text" ]; text = "contents"; }
END
export NIX_BUILD_SHELL=/bin/bash
x nix-shell s.nix --run 'echo $foo; read x < $dep; echo $x; echo $IN_NIX_SHELL $name $out'
x nix-shell --pure s.nix --run 'echo $foo; exit 3'
x nix-shell s.nix -A nothing --run 'echo'
x nix-shell s.nix --command 'echo $foo; exit'
mkdir -p tree/bin; printf '#!/bin/sh\necho hello "$@"\n' > tree/bin/hello; cp tree/bin/hello tree/bin/other; chmod +x tree/bin/*
cat > p.nix <<'END'
{ hello = derivation { name = "hello-1"; system = builtins.currentSystem; builder = "builtin:buildenv"; derivations = [ "true" "5" "1" (builtins.path { path = ./tree; name = "t"; }) ]; manifest = "m"; }; }
END
x nix shell -f p.nix hello -c hello you
x nix run -f p.nix hello -- you
x nix shell -f p.nix hello -c other
b nix shell -f g.nix broken -c true
x nix develop -f s.nix -c echo hi
x nix-build p.nix -A hello -o hello
x ./hello/bin/hello
x nix-store -q --hash hello
# nix develop builds a derivation that says what its environment is, with bash, which our sandbox must be told of
cat > b.nix <<'END'
derivation { name = "b"; system = builtins.currentSystem; builder = "/bin/bash"; args = [ "-c" "echo > $out" ]; foo = "bar baz"; PATH = "/bin:/usr/bin"; outputs = [ "out" "dev" ]; }
END
bash='--option sandbox-paths /bin/bash=/bin/bash'
# nix 2.8's own daemon dies of it
if new; then
  x nix develop $bash -f b.nix -c /bin/sh -c 'echo $foo $name $IN_NIX_SHELL'
  x nix print-dev-env $bash -f b.nix --profile dev >/dev/null
  x readlink -f dev
fi
