# Evaluation that builds, reads and adds.
cat > ifd.nix <<'END'
let d = name: script: derivation { inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ]; };
    gen = d "gen" "echo '{ a = 1; b = ./x; }' > $out"; bad = d "bad" "exit 1"; in {
  a = (import gen).a; read = builtins.readFile (d "text" "echo hi > $out"); bad = import bad; exists = builtins.pathExists gen;
  from = d "from-${toString (import gen).a}" "echo ${gen} > $out"; path = builtins.storePath (builtins.unsafeDiscardStringContext "${gen}");
}
END
x nix-instantiate --eval ifd.nix --read-write-mode -A a
x nix-instantiate --eval ifd.nix --read-write-mode -A read
b nix-instantiate --eval ifd.nix --read-write-mode -A bad
x nix-instantiate --eval ifd.nix --read-write-mode -A exists
x nix-build ifd.nix -A from --no-out-link
x nix-instantiate --eval ifd.nix --read-write-mode -A a --option allow-import-from-derivation false
x nix eval -f ifd.nix a
x nix eval -f ifd.nix read --raw
mkdir -p t/sub; echo a > t/a; echo b > t/sub/b; ln -s a t/l; chmod +x t/a
x nix-instantiate --eval -E '"${./t}"'
x nix-instantiate --eval -E 'builtins.path { path = ./t; name = "other"; filter = p: t: t != "symlink"; }'
x nix-instantiate --eval -E 'builtins.filterSource (p: t: t != "directory") ./t'
x nix-instantiate --eval --read-write-mode -E 'builtins.toFile "a" "b"'
x nix-instantiate --eval -E 'builtins.toFile "a" "${./t}"'
x nix-instantiate --eval -E 'builtins.toFile "a" "${builtins.toFile "b" "c"}"'
x nix-instantiate --eval -E 'builtins.fetchurl "file://${toString ./t/a}"'
tar cf t.tar t
x nix-instantiate --eval -E 'builtins.fetchTarball "file://${toString ./t.tar}"'
x nix-instantiate --eval -E 'builtins.path { path = ./t; sha256 = "0000000000000000000000000000000000000000000000000000"; }'
x nix-prefetch-url file://$PWD/t/a
x nix-prefetch-url file://$PWD/t.tar --unpack --print-path
u nix-store -q --references $(nix-instantiate --eval --read-write-mode -E 'builtins.toFile "a" "${builtins.toFile "b" "c"}"' | tr -d '"')
x nix-instantiate -E 'derivation { name = "x"; system = "s"; builder = "b"; a = ./t; }'
