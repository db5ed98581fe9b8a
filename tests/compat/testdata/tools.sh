# The nix commands that look at the store.
out=$(nix-build g.nix -A onFloating -o keep 2>/dev/null)
first=$(nix-build g.nix -A first --no-out-link 2>/dev/null)
two=$(nix-build g.nix -A two --no-out-link 2>/dev/null)
mkdir -p t/sub; echo a > t/a; echo "b $first" > t/sub/b; ln -s a t/l; chmod +x t/a
t=$(nix-store --add t)
x nix path-info $out
u nix path-info -r $out
u nix path-info -rsSh $out
x nix path-info $NIX_STORE_DIR/00000000000000000000000000000000-a
x nix store ls -lR $t
x nix store ls --json -R $t
x nix store ls $t/none
x nix store cat $t/sub/b
x nix store cat $t/l
x nix store dump-path $t | sha256sum
x nix why-depends $out $first
x nix why-depends $out $two
x nix why-depends --all $out $first
x nix store diff-closures $out $two
x nix store verify -r $out
x nix store verify --all --no-trust
x nix store verify -r $out --sigs-needed 1 --no-contents
x nix store sign -k sk -r $out
x nix path-info --sigs -r $first
x nix store verify --no-contents -r $first --sigs-needed 1 --option trusted-public-keys "$(nix key convert-secret-to-public < sk)"
x nix store add-file t/a
x nix store add-path t --name other
b nix store add-file t
x nix store make-content-addressed $first --json
# nix 2.8 never comes back from closures that refer to themselves
if new; then u nix store make-content-addressed -r $out --json; fi
x nix log $first
x nix log -f g.nix two
x nix-store --read-log $first
x nix-store -l $(nix-instantiate g.nix -A first)
x nix log $t
if new; then x nix derivation show -f g.nix first; else x nix show-derivation -f g.nix first; fi
if new; then nix derivation show -f g.nix first > d.json; x nix derivation show -r -f g.nix floating; else x nix show-derivation -r -f g.nix floating; fi
x nix hash path t
x nix store copy-sigs -r $out
x nix store repair $first
x nix eval -f g.nix first.outPath
x nix eval --expr '1 + 1'
x nix-store --dump $t | sha256sum
nix-store --dump $t | nix-store --restore t2; x diff -r t t2
x nix-hash --type sha256 t
x nix store prefetch-file file://$PWD/t/a --json
x nix copy --to file://$PWD/cache $out --no-check-sigs
u ls cache
x nix path-info --store file://$PWD/cache -r $out
x nix-store --verify
x nix-store --verify --check-contents
x nix-store --verify-path $out $first
x nix store info --json
if new; then
  sed -e 's/^{"derivations":{"[^"]*"://' -e 's/},"version":4}$//' d.json > d1.json
  x nix derivation add < d1.json
  x nix store info
  x nix config check
  nix store dump-path $t > nar
  x nix nar ls -R nar /
  x nix nar cat nar /sub/b
  x nix build $first $out --no-link --print-out-paths
  x nix build "$(nix-instantiate g.nix -A two)^*" --no-link --print-out-paths
  x nix build "$(nix-instantiate g.nix -A two)^dev" --no-link --json >/dev/null
  b nix store delete $two >/dev/null
fi
nix-store --export $first > e
x nix-store --import < e
x nix-store --query --deriver $t
x nix-store --register-validity </dev/null
x nix-store --load-db </dev/null
x nix-store --gc --print-roots | grep -v keep
x nix-store --generate-binary-cache-key k-1 k1 k2
x nix-store --serve </dev/null
