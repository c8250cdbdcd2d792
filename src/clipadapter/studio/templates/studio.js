const perform = (data) => trigger('act', data);
const parsePictures = (data) => ({ ...data, ...(data.pictures ? { pictures: JSON.parse(data.pictures) } : {}) });
const FILES_PER_REQUEST = 50;

const sendFiles = async (files, className, dropArea) => {
  const label = dropArea && dropArea.querySelector('.cs-sending');
  const sent = [];
  for (const [i, file] of files.entries()) {
    if (label) {
      label.dataset.default ??= label.textContent;
      label.textContent = `Sending ${i + 1} of ${files.length}`;
    }
    try {
      const { path } = await upload(file);
      sent.push({ path, name: file.name });
    } catch (error) {
      perform({ action: 'upload-failed', text: `${file.name}: ${error.message || error}` });
    }
    const isLast = i === files.length - 1;
    if (sent.length === FILES_PER_REQUEST || (sent.length && isLast)) {
      perform({ action: 'upload', class: className, files: sent.splice(0) });
    }
  }
};

element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (!button || button.disabled) return;
  // After the first click of a double click, another class or picture has the place of the removed one.
  if (event.detail > 1 && button.dataset.action.startsWith('remove')) return;
  perform(parsePictures({ ...button.dataset }));
});
element.addEventListener('submit', (event) => {
  event.preventDefault();
  const form = event.target;
  perform({ ...form.dataset, ...Object.fromEntries(new FormData(form)) });
});
element.addEventListener('change', (event) => {
  const input = event.target;
  if (!input.matches('input[type=file]') || !input.files.length) return;
  const files = [...input.files];
  input.value = '';
  sendFiles(files, input.dataset.upload, input.closest('[data-drop]'));
});
for (const [kind, isOver] of [['dragover', true], ['dragleave', false], ['drop', false]]) {
  element.addEventListener(kind, (event) => {
    const dropArea = event.target.closest('[data-drop]');
    if (!dropArea) return;
    event.preventDefault();
    dropArea.classList.toggle('cs-over', isOver);
    if (kind === 'drop') sendFiles([...event.dataTransfer.files], dropArea.dataset.drop, dropArea);
  });
}
// The field of a new name gets the focus once: later updates from the server must not disturb a person who types.
let focusedClass = null;
watch('value', () => {
  const field = element.querySelector('[data-focus]');
  const className = field && field.form.dataset.class;
  if (field && className !== focusedClass) { field.focus(); field.select(); }
  focusedClass = className;
});

const isTyping = (target) => target.closest && target.closest('input, textarea, select, [contenteditable]');
if (element.closest('#cs-queue')) {
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || isTyping(event.target)) return;
    const focused = document.activeElement;
    if (focused !== document.body && focused && !element.contains(focused)) return;
    const button = element.querySelector(`button[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
    if (button) { event.preventDefault(); button.click(); }
  });
}
if (element.closest('#cs-status')) {
  // The status panel has the results of all actions, also of those that change no other panel.
  let before = { uploads: 0, rejectedNames: 0 };
  watch('value', () => {
    const { uploads, rejectedNames } = element.querySelector('.cs-status').dataset;
    if (uploads !== before.uploads) {
      for (const label of document.querySelectorAll('.cs-sending[data-default]')) label.textContent = label.dataset.default;
    }
    const field = document.querySelector('#cs-new input, #cs-new textarea');
    if (Number(rejectedNames) > before.rejectedNames) { field.focus(); field.select(); }
    before = { uploads, rejectedNames: Number(rejectedNames) };
  });
  document.addEventListener('keydown', (event) => {
    const isUndo = event.key.toLowerCase() === 'z' && (event.ctrlKey || event.metaKey) && !event.shiftKey;
    if (!isUndo || isTyping(event.target)) return;
    event.preventDefault();
    perform({ action: 'undo' });
  });
}
