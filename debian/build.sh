#!/bin/sh
# debian/build.sh -- packages of what git knows (of all files where there is no git) in build/deb, by dpkg-buildpackage on a copy;
# lintian has the last word. Installs what debian/packages.txt names when it is missing. Refuses to leave packages behind that
# lintian finds an error or a warning in.
set -eu
cd "$(dirname "$0")/.."
sh etc/setup.sh --packages debian/packages.txt
version=$(cat VERSION)
said=$(dpkg-parsechangelog -S Version)
[ "$said" = "$version" ] || { echo "deb: debian/changelog says $said, VERSION $version" >&2; exit 1; }
out=build/deb
rm -rf "$out"
mkdir -p "$out/postrider-$version"
if git rev-parse --git-dir >/dev/null 2>&1; then
	git ls-files -z | tar -c --null -T - | tar -x -C "$out/postrider-$version"
else
	tar -c --exclude=./build . | tar -x -C "$out/postrider-$version"
fi
(cd "$out/postrider-$version" && DEB_BUILD_OPTIONS="${DEB_BUILD_OPTIONS:-parallel=$(nproc)}" dpkg-buildpackage -us -uc) >"$out/log" 2>&1 || {
	tail -n 40 "$out/log" >&2
	exit 1
}
lintian --fail-on error,warning "$out"/*.changes || {
	mkdir -p "$out/refused"
	mv "$out"/*.deb "$out/refused/"
	exit 1
}
rm -rf "$out/postrider-$version"
ls "$out"/*.deb
