#!/bin/sh
# docs/man/program.sh PROGRAM -- the manual page of a daemon, from what it says itself (--help, --version). The CLI's page is
# docs/man/postrider.1.
set -eu
name=$(basename "$1")
version=$("$1" --version)
version=${version#* }
"$1" --help | awk -v name="$name" -v version="${version%% *}" '
	function safe(s) { gsub(/\\/, "\\e", s); gsub(/-/, "\\-", s); sub(/^[.\x27]/, "\\\\\\&&", s); return s }
	NR == 1 {
		does = substr($0, length(name) + 3)
		printf ".TH %s 1 \"\" \"Postrider %s\" \"Postrider\"\n.SH NAME\n%s \\- %s\n", toupper(name), version, safe(name), safe(does)
		next
	}
	/^usage: / { print ".SH SYNOPSIS\n.B " safe(substr($0, 8)); next }
	/^  -/ {
		if (!options++) print ".SH OPTIONS"
		flag = $0; sub(/^  /, "", flag); sub(/  +[^ ].*/, "", flag)
		print ".TP\n.B " safe(flag) "\n" safe(substr($0, 22))
		next
	}
	/^$/ { next }
	!notes++ { print ".SH NOTES" }
	{ print safe($0) }
	END { print ".SH SEE ALSO\n.BR postrider (1)" }'
