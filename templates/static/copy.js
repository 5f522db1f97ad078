// Buttons that copy: `data-copy` names the element whose text they take.

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyOldWay(text);
  }
}

// Browsers offer the clipboard only to pages from https or this machine; a broker in a plain network is neither.
function copyOldWay(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  try {
    return document.execCommand("copy");
  } catch {
    return false;
  } finally {
    area.remove();
  }
}

export function copyOnPress() {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copy]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copy);
    const done = await copy(source.value ?? source.textContent);
    button.textContent = done ? "Copied" : "Not copied";
    button.focus();
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
