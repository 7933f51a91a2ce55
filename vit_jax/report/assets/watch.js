// Loads the page again when the served report has changed.


setInterval(async () => {
  if (document.hidden) return;
  try {
    const version = await (await fetch('version')).text();
    if (version !== report.version) location.reload();
  } catch (error) {
    document.title = '(not served any more)';
  }
}, 2000);
