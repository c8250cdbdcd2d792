const act = (data) => trigger('act', data);
const keysOf = (data) => ({ ...data, ...(data.pictures ? { pictures: JSON.parse(data.pictures) } : {}) });

const send = async (files, name, drop) => {
  const told = drop && drop.querySelector('.cs-sending');
  const sent = [];
  for (const [i, file] of files.entries()) {
    if (told) {
      told.dataset.usual ??= told.textContent;
      told.textContent = `Sending ${i + 1} of ${files.length}`;
    }
    try {
      const { path } = await upload(file);
      sent.push({ path, name: file.name });
    } catch (error) {
      act({ do: 'failed', text: `${file.name}: ${error.message || error}` });
    }
    if (sent.length === 50 || (sent.length && i === files.length - 1)) act({ do: 'upload', class: name, files: sent.splice(0) });
  }
};

element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-do]');
  if (!button || button.disabled) return;
  // After the first click of a double one, another class or picture has moved to where the removed one was.
  if (event.detail > 1 && button.dataset.do.startsWith('remove')) return;
  act(keysOf({ ...button.dataset }));
});
element.addEventListener('submit', (event) => {
  event.preventDefault();
  const form = event.target;
  act({ ...form.dataset, ...Object.fromEntries(new FormData(form)) });
});
element.addEventListener('change', (event) => {
  const input = event.target;
  if (!input.matches('input[type=file]') || !input.files.length) return;
  const files = [...input.files];
  input.value = '';
  send(files, input.dataset.upload, input.closest('[data-drop]'));
});
for (const [kind, over] of [['dragover', true], ['dragleave', false], ['drop', false]]) {
  element.addEventListener(kind, (event) => {
    const place = event.target.closest('[data-drop]');
    if (!place) return;
    event.preventDefault();
    place.classList.toggle('cs-over', over);
    if (kind === 'drop') send([...event.dataTransfer.files], place.dataset.drop, place);
  });
}
// The field of a new name is entered once: what comes from the server meanwhile must not disturb who is typing.
let entered = null;
watch('value', () => {
  const field = element.querySelector('[data-focus]');
  const name = field && field.form.dataset.class;
  if (field && name !== entered) { field.focus(); field.select(); }
  entered = name;
});

const typing = (target) => target.closest && target.closest('input, textarea, select, [contenteditable]');
if (element.closest('#cs-queue')) {
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || typing(event.target)) return;
    const at = document.activeElement;
    if (at !== document.body && at && !element.contains(at)) return;
    const button = element.querySelector(`button[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
    if (button) { event.preventDefault(); button.click(); }
  });
}
if (element.closest('#cs-bar')) {
  // What the server has answered shows in the bar, also where no other panel changes for it.
  let before = { uploads: 0, misnamed: 0 };
  watch('value', () => {
    const { uploads, misnamed } = element.querySelector('.cs-bar').dataset;
    if (uploads !== before.uploads) {
      for (const told of document.querySelectorAll('.cs-sending[data-usual]')) told.textContent = told.dataset.usual;
    }
    const field = document.querySelector('#cs-new input, #cs-new textarea');
    if (Number(misnamed) > before.misnamed) { field.focus(); field.select(); }
    before = { uploads, misnamed: Number(misnamed) };
  });
  document.addEventListener('keydown', (event) => {
    if (event.key.toLowerCase() !== 'z' || !(event.ctrlKey || event.metaKey) || event.shiftKey || typing(event.target)) return;
    event.preventDefault();
    act({ do: 'undo' });
  });
}
