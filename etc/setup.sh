#!/bin/sh
# etc/setup.sh [--if-missing] -- installs the Debian packages of etc/packages.txt that
# are missing and fetches Kafka's jars into ${XDG_CACHE_HOME:-~/.cache}/postrider.
# With --if-missing it says nothing when all is there (and takes a blink).
# Refuses to start services: a fresh Postgres gets no system cluster from us, an existing
# one is never touched.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
quiet=0
case ${1-} in
'') ;;
--if-missing) quiet=1 ;;
*) echo "usage: $0 [--if-missing]" >&2; exit 2 ;;
esac
version=$(sed -n '/<artifactId>kafka_2.13</{n;s/.*<version>\(.*\)<.*/\1/p;}' "$here/kafka/pom.xml")
jars=${XDG_CACHE_HOME:-$HOME/.cache}/postrider/kafka-$version

say() { echo "setup: $*" >&2; }

missing_packages() {
	command -v dpkg-query >/dev/null || return 0
	wanted=$(sed 's/#.*//' "$here/packages.txt")
	have=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' $wanted 2>/dev/null | sed -n 's/^installed //p') || :
	for p in $wanted; do
		case "
$have
" in *"
$p
"*) ;; *) echo "$p" ;; esac
	done
}

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Services that come with a package stay off: policy-rc.d answers "no" meanwhile.
install_packages() {
	command -v apt-get >/dev/null || { say "no apt-get here; please install:" "$@"; exit 1; }
	if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
		say "not root and no sudo; please install:" "$@"
		exit 1
	fi
	say "installing" "$@"
	as_root env DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 sh -eu -c '
		policy=/usr/sbin/policy-rc.d cluster=/etc/postgresql-common/createcluster.conf
		if [ ! -e $policy ]; then
			trap "rm -f $policy" EXIT
			trap "exit 1" HUP INT TERM
			printf "#!/bin/sh\nexit 101\n" >$policy
			chmod 755 $policy
		fi
		if ! dpkg-query -W postgresql-common >/dev/null 2>&1 && [ ! -e $cluster ]; then
			mkdir -p "${cluster%/*}"
			echo "create_main_cluster = false" >$cluster
		fi
		new_prometheus=0
		dpkg-query -W prometheus >/dev/null 2>&1 || new_prometheus=1
		apt-get -qq -o DPkg::Lock::Timeout=300 update
		apt-get -qq -y --no-install-recommends -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
			-o Dpkg::Options::=--force-confold install "$@"
		if [ $new_prometheus = 1 ] && command -v systemctl >/dev/null; then
			systemctl -q disable prometheus 2>/dev/null || :
		fi
	' setup "$@" </dev/null >&2
}

fetch_jars() {
	say "fetching Kafka $version from Maven Central into $jars"
	half=$jars.$$
	mkdir -p "${jars%/*}"
	trap 'rm -rf "$half"' EXIT
	if timeout 600 mvn -q -B -ntp -f "$here/kafka/pom.xml" dependency:copy-dependencies \
		-DincludeScope=runtime -DoutputDirectory="$half" </dev/null >"${jars%/*}/maven.log" 2>&1 &&
		[ -e "$half/kafka_2.13-$version.jar" ]; then
		[ -e "$jars" ] || mv "$half" "$jars"
	else
		say "Kafka's jars cannot be had (see ${jars%/*}/maven.log)."
		say "The demo falls back to librdkafka's mock broker; tests on a real broker are skipped."
	fi
}

packages=$(missing_packages)
[ -z "$packages" ] || install_packages $packages
[ -e "$jars/kafka_2.13-$version.jar" ] || fetch_jars
[ $quiet = 1 ] || say "all there"
