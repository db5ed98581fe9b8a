# What daemons do besides: hooks, logs on disk, roots of sessions, signatures of builds.
cat > hook <<END
#!/bin/sh
new() { [ $COMPAT_NIX != 2.8 ]; } # 2.8 says no paths with CA derivations on
echo "hook: \$DRV_PATH \$(new && echo \$OUT_PATHS)" >> $PWD/hooked
echo hook says so
END
chmod +x hook
x nix-build g.nix -A two --no-out-link --option post-build-hook $PWD/hook
cat hooked
printf '#!/bin/sh\nexit 7\n' > bad; chmod +x bad
b nix-build g.nix -A first --no-out-link --option post-build-hook $PWD/bad
x nix-build g.nix -A onFirst --no-out-link --option secret-key-files $PWD/sk
x nix path-info --sigs -f g.nix onFirst
find $STATE/log -name '*.drv*' -not -name '*on-first*' | sed 's/.bz2$//' | sort
x nix-build --no-out-link -E 'derivation { name = "env"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "set" ]; }' >/dev/null
