// Runs once when the page opens. It adds what Gradio has no setting for.
() => {
  const BREAK = /\u2060/g;

  // What a visitor copies is the text as it was written (see safe_text.py).
  document.addEventListener("copy", (event) => {
    const text = String(document.getSelection());
    if (BREAK.test(text)) {
      event.clipboardData.setData("text/plain", text.replace(BREAK, ""));
      event.preventDefault();
    }
  });
  if (navigator.clipboard && navigator.clipboard.writeText) {
    const write = navigator.clipboard.writeText.bind(navigator.clipboard);
    navigator.clipboard.writeText = (text) => write(String(text).replace(BREAK, ""));
  }

  // No link or form inside a message leads anywhere.
  const inMessage = (event) => event.target.closest && event.target.closest(".bubble-wrap, .message");
  for (const kind of ["click", "auxclick"]) {
    document.addEventListener(kind, (event) => {
      if (inMessage(event) && event.target.closest("a[href], area, form [type=submit]")) event.preventDefault();
    }, true);
  }
  document.addEventListener("submit", (event) => { if (inMessage(event)) event.preventDefault(); }, true);

  // Names for controls that Gradio leaves without one, and the side on which a token's details open.
  const NAMES = [
    ["#chat textarea", "Edit the message"],
    ["#message textarea", "Your message"],
    ["#compare-message textarea", "Message for both models"],
    ["#message button.submit-button", "Send"],
    ["#message button.stop-button", "Stop"],
    [".message [role=button] > .arrow > button, .thought-group [role=button] button", "Show or hide the calculation"],
  ];
  const nameControls = () => {
    for (const [selector, name] of NAMES) {
      for (const element of document.querySelectorAll(selector)) {
        if (!element.getAttribute("aria-label")) element.setAttribute("aria-label", name);
      }
    }
    for (const element of document.querySelectorAll("button, input, textarea, select, [role=button]")) {
      const named = element.getAttribute("aria-label") || element.getAttribute("aria-labelledby")
        || (element.labels && element.labels.length && element.labels[0].textContent.trim())
        || element.textContent.trim();
      if (!named) {
        const title = element.title || element.placeholder || element.dataset.testid
          || (element.closest(".block") && element.closest(".block").querySelector("[data-testid=block-info], .label-wrap, label")
            || {}).textContent;
        if (title && title.trim()) element.setAttribute("aria-label", title.trim());
      }
    }
    for (const tile of document.querySelectorAll("#tokens .tiles .tile")) {
      tile.classList.toggle("right", tile.getBoundingClientRect().left > window.innerWidth / 2);
    }
  };
  let waiting = false;
  const soon = () => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => { waiting = false; nameControls(); }, 150);
  };
  new MutationObserver(soon).observe(document.body, { childList: true, subtree: true });
  window.addEventListener("resize", soon);
  nameControls();

  // Conversations are kept in this browser only, one entry each, so that two tabs do not overwrite each other.
  const PREFIX = "nanochat-conversation:";
  const read = (key) => { try { return JSON.parse(localStorage.getItem(key)); } catch { return null; } };
  const list = () => Object.keys(localStorage).filter((key) => key.startsWith(PREFIX)).map((key) => read(key))
    .filter((one) => one && one.id && Array.isArray(one.messages) && one.messages.length)
    .sort((a, b) => (b.at || 0) - (a.at || 0))
    .map((one) => ({ id: one.id, title: one.title }));
  window.nanochat = {
    save(conversation) {
      if (conversation && conversation.id && Array.isArray(conversation.messages) && conversation.messages.length) {
        const first = conversation.messages.find((one) => one.role === "user");
        const title = String(first ? first.content : "Conversation").replace(/\s+/g, " ").slice(0, 48);
        try {
          localStorage.setItem(PREFIX + conversation.id, JSON.stringify({ ...conversation, title, at: Date.now() }));
        } catch { /* the browser's storage is full or switched off: the chat goes on without it */ }
        try { sessionStorage.setItem("nanochat-open", conversation.id); } catch { /* as above */ }
      }
      return list();
    },
    open(id) {
      const found = read(PREFIX + id);
      try { sessionStorage.setItem("nanochat-open", found ? id : ""); } catch { /* as above */ }
      return found ? { id: found.id, messages: found.messages } : { id: "", messages: [] };
    },
    start() {
      try { sessionStorage.removeItem("nanochat-open"); } catch { /* as above */ }
      return { id: "", messages: [] };
    },
    remove(conversation) {
      if (conversation && conversation.id) localStorage.removeItem(PREFIX + conversation.id);
      return [list(), window.nanochat.start()];
    },
    last() {
      let id = "";
      try { id = sessionStorage.getItem("nanochat-open") || ""; } catch { /* as above */ }
      return [list(), id ? window.nanochat.open(id) : { id: "", messages: [] }];
    },
  };
}
