# Questions about the graph.
drv=$(nix-instantiate g.nix -A onFloating --add-root inst --indirect)
out=$(nix-build g.nix -A onFloating -o keep 2>/dev/null)
first=$(nix-build g.nix -A first --no-out-link 2>/dev/null)
x nix-store -r inst
x nix-store -q --tree $out
x nix-store -q --tree $drv
u nix-store -q --graph $out
x nix-store -q --graphml $out
# with CA derivations on, nix leaves the resolved derivation of the fixed output behind, too
u nix-store -q --referrers-closure $first | grep -v fixed.drv
u nix-store -q --requisites $drv
u nix-store -qR --include-outputs $drv
u nix-store -q --outputs $drv
x nix-store -q --size $out $first
x nix-store -q --hash $out $first
u nix-store -q --deriver $first
x nix-store -q --binding name $drv
x nix-store -q --resolve $out
u nix-store -q --roots $out
x nix-store -q --references $(readlink -f g.nix)
x nix-store --print-env $(nix-instantiate g.nix -A first)
x nix-store -q --outputs $first
x nix-store -q --binding nothing $drv
x nix-store --check-validity $out $first
x nix-store --check-validity $NIX_STORE_DIR/00000000000000000000000000000000-a
x nix-store --check-validity --print-invalid $out $NIX_STORE_DIR/00000000000000000000000000000000-a
x nix-store -q --references $NIX_STORE_DIR/00000000000000000000000000000000-a
x nix-store --dump-db $first
if new; then x nix-store -q --valid-derivers $first; fi
