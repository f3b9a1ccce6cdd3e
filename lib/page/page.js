"use strict";
(() => {
	const id = name => document.getElementById(name), root = document.documentElement;
	const every = 2000, late = 6000;
	let seen = Date.now(), held = false, said = "", timer;

	/* What the page is told anew is put in place piece by piece: focus, scrolling and selections stay. */
	const keep = new Set(["open", "data-theme"]);
	function morph(a, b) {
		if (a.nodeType !== b.nodeType || a.nodeName !== b.nodeName || a.id !== b.id)
			return a.replaceWith(document.importNode(b, true));
		if (a.nodeType !== Node.ELEMENT_NODE) {
			if (a.data !== b.data) a.data = b.data;
			return;
		}
		if ("keep" in a.dataset || a.isEqualNode(b)) return;
		for (const x of [...a.attributes])
			if (!b.hasAttribute(x.name) && !keep.has(x.name)) a.removeAttribute(x.name);
		for (const x of b.attributes)
			if (a.getAttribute(x.name) !== x.value && !keep.has(x.name)) a.setAttribute(x.name, x.value);
		const now = [...a.childNodes], next = [...b.childNodes];
		now.forEach((c, i) => next[i] ? morph(c, next[i]) : c.remove());
		next.slice(now.length).forEach(c => a.append(document.importNode(c, true)));
	}

	/* Read aloud when the words change, not when a number in them does. */
	function say() {
		if (!id("state")) return;
		const text = id("state").textContent + ". " + id("sentence").textContent, words = text.replace(/[\d.,]+/g, "");
		if (said && words !== said) id("say").textContent = text;
		said = words;
	}

	function age() {
		const s = Math.round((Date.now() - seen) / 1000), old = !held && Date.now() - seen > late;
		id("age").textContent = held ? "paused: as of " + s + " s ago" : s < 5 ? "live" : s + " s ago";
		document.body.classList.toggle("old", old);
		id("stale").hidden = !old;
		const text = "No answer since " + new Date(seen).toLocaleTimeString() + ": what stands here is old";
		if (old && id("stale").textContent !== text) id("stale").textContent = text;
	}

	async function refresh() {
		clearTimeout(timer);
		try {
			const r = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(5000) });
			if (!r.ok) throw new Error(r.status);
			const next = new DOMParser().parseFromString(await r.text(), "text/html");
			if (held) return;
			if (!next.getElementById("main")) throw new Error("another page");
			morph(id("main"), next.getElementById("main"));
			document.title = next.title;
			seen = Date.now();
			say();
		} catch (e) {
			/* age() says so */
		} finally {
			age();
			if (!held && !document.hidden) timer = setTimeout(refresh, every);
		}
	}

	const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
	function theme(to) {
		if (to) root.dataset.theme = to;
		id("theme").textContent = dark() ? "Light" : "Dark";
	}
	let stored = null;
	try { stored = localStorage.getItem("postrider-theme"); } catch (e) { /* not allowed here */ }
	theme(stored);
	matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme());
	id("theme").addEventListener("click", () => {
		theme(dark() ? "light" : "dark");
		try { localStorage.setItem("postrider-theme", root.dataset.theme); } catch (e) { /* not kept then */ }
	});
	id("hold").addEventListener("click", () => {
		held = !held;
		id("hold").setAttribute("aria-pressed", held);
		id("hold").textContent = held ? "Go on" : "Pause";
		if (held) { clearTimeout(timer); age(); } else refresh();
	});
	document.addEventListener("visibilitychange", () => document.hidden || held || refresh());
	id("theme").hidden = false;
	if (!id("health")) return; /* a look-up: it stays as it was asked for */
	id("hold").hidden = false;
	say();
	age();
	setInterval(age, 1000);
	timer = setTimeout(refresh, every);
})();
