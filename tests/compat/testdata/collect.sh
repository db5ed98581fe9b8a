# Garbage: roots of all kinds, what is live and dead, limits.
a=$(nix-build g.nix -A onFirst -o keep 2>/dev/null)
b=$(nix-build g.nix -A two --no-out-link 2>/dev/null)
drv=$(nix-instantiate g.nix -A two --add-root drv --indirect)
u nix-store --gc --print-live
u nix-store --gc --print-dead
ls $STATE/gcroots/auto | wc -l
b nix-store --delete $a
b nix-store --delete $b >/dev/null
x nix-store -q --hash $b
b nix-store --delete $NIX_STORE_DIR/00000000000000000000000000000000-a
b nix-store --delete $(readlink -f g.nix)
b nix-store --delete --ignore-liveness $a
mv keep moved
u nix-store --gc --print-live
mv moved keep
x nix-store --gc --print-live >/dev/null
u nix-store --gc --print-live
ls $STATE/gcroots/auto | wc -l
for i in 1 2 3; do nix-store --add-fixed sha256 g.nix >/dev/null; echo $i > f$i; nix-store --add f$i >/dev/null; done
x nix-store --gc --max-freed 0
u nix-store --gc --print-dead
nix-store --gc >/dev/null 2>&1
u nix-store --gc --print-dead
u ls $NIX_STORE_DIR
a=$(nix-build g.nix -A onFirst -o keep 2>/dev/null)
x nix-store --add-root perm -r $a
x readlink perm
x nix-store --realise $a --add-root $STATE/gcroots/mine
u nix-store -q --roots $a
u nix-store -q --roots $NIX_STORE_DIR/00000000000000000000000000000000-a
u nix-store -q --referrers $NIX_STORE_DIR/00000000000000000000000000000000-a
rm keep perm
u nix-store --gc --print-live
x nix-store --gc --max-freed 1000000000 >/dev/null
rm $STATE/gcroots/mine drv
x nix-collect-garbage >/dev/null
u ls $NIX_STORE_DIR
u nix-store --gc --print-live
x nix store gc
n=$(nix-build g.nix -A first --no-out-link 2>/dev/null)
b nix store delete $n >/dev/null
x nix store gc --max 1000 >/dev/null
nix-build g.nix -A first >/dev/null 2>&1
b nix store delete $n
b nix store delete --ignore-liveness $n
